"""The types of the events of a job whose texts have two pieces each."""

BEGIN = ["response.created", "response.queued", "response.in_progress"]
#: A draft or a critique: its text, and the same as its summary.
REASONING = [
    "response.output_item.added",
    "response.reasoning_summary_part.added",
    "response.content_part.added",
    "response.reasoning_summary_text.delta",
    "response.reasoning_text.delta",
    "response.reasoning_summary_text.delta",
    "response.reasoning_text.delta",
    "response.reasoning_summary_text.done",
    "response.reasoning_summary_part.done",
    "response.reasoning_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
MESSAGE = [
    name.replace("reasoning_text", "output_text") for name in REASONING if "summary" not in name
]
