"""All commands: a line of help, an example, and the module that has the command.

A list of commands, and the completion of their names, need no more than that, and import none of the modules.
"""

from __future__ import annotations

from typing import NamedTuple

#: The groups of commands, and their help.
GROUPS = {
    "bench": "Run a benchmark against a baseline: that of the engine, without COMMAND.",
    "jobs": "List, show, watch, cancel, retry, replay, review, erase, delete, export, import and verify jobs.",
    "keys": "Make, list and revoke API keys.",
    "lora": "Extract, merge, inspect and convert adapters.",
    "webhooks": "Register URLs that are told when jobs end, and see what was delivered.",
}


#: The commands of the program by what they are for, in the order of its help.
SECTIONS = {
    "Commands": ("up", "ask", "chat", "jobs", "stats", "status"),
    "To run a deployment": (
        "web",
        "worker",
        "maintain",
        "migrate",
        "keys",
        "webhooks",
        "pause",
        "resume",
        "doctor",
    ),
    "Models and measurements": ("lora", "eval", "bench"),
    "Other": ("completion",),
}


#: The commands and groups that do not ask a server, and the sentence of their help that says so.
ON_DATABASE = {"keys", "webhooks", "jobs import", "jobs log-key", "jobs new-log", "jobs verify"}
ON_DATABASE_HELP = "Works on the database itself, not over HTTP: HELIXQ_DATABASE_URL, or helixq.sqlite3 in HELIXQ_DATA_DIR."

#: What a group runs without the name of a command.
DEFAULTS = {"bench": "engine"}


class Entry(NamedTuple):
    """A command."""

    #: Module and name of the command: ``module:name``.
    where: str
    #: The first sentence of its help.
    summary: str
    #: Command lines. `ID` and the like stand for what the reader has.
    example: str


COMMANDS = {
    "ask": Entry(
        "cli.questions:ask",
        "Ask one question and print the three texts.",
        'helixq ask --final "What is 47 * 36?"\necho "What is 47 * 36?" | helixq ask --json id,answer',
    ),
    "chat": Entry(
        "cli.questions:chat",
        "Ask questions in a loop, like the model card's program.",
        "helixq chat --url helixq.example:8000",
    ),
    "completion": Entry(
        "cli.completion:command",
        "Print the script that makes a shell complete commands and options.",
        "helixq completion bash > ~/.local/share/bash-completion/completions/helixq",
    ),
    "doctor": Entry(
        "cli.doctor:command",
        "Check a deployment from this machine, with its settings, and say what is wrong and what to do.",
        "helixq doctor\nhelixq doctor --skip model --skip gpu",
    ),
    "eval": Entry(
        "cli.evaluating:command", "Measure what critic and regenerator improve.", "helixq eval"
    ),
    "maintain": Entry(
        "cli.running:maintain", "Run the background duties without a worker.", "helixq maintain"
    ),
    "migrate": Entry(
        "cli.running:migrate",
        "Migrate the database schema to the latest revision.",
        "helixq migrate",
    ),
    "pause": Entry(
        "cli.pausing:pause",
        "Pause the queue: stages that run finish, and no other starts until `helixq resume`.",
        "helixq pause --note 'New GPU, back at 15:00'",
    ),
    "resume": Entry(
        "cli.pausing:resume",
        "Resume the queue that `helixq pause` paused.",
        "helixq resume",
    ),
    "status": Entry(
        "cli.status:command",
        "Show what runs: the web, the workers with their models, the queue and the log.",
        "helixq status\nhelixq status --json workers,queue",
    ),
    "stats": Entry(
        "cli.statistics:command",
        "Summarize the jobs that have ended: how many, how long, how much was changed, how they were rated.",
        "helixq stats --by adapter --since 2026-11-01\n"
        "helixq stats --compare 2026-11-16/2026-11-23,2026-11-23/2026-11-30",
    ),
    "up": Entry(
        "cli.running:up",
        "Run Redis, the database, one worker and the web in one place.",
        "HELIXQ_PORT=9000 helixq up",
    ),
    "web": Entry("cli.running:web", "Run the web server.", "HELIXQ_HOST=0.0.0.0 helixq web"),
    "worker": Entry("cli.running:worker", "Run one worker.", "HELIXQ_DEVICE=cuda helixq worker"),
    "bench api": Entry(
        "cli.bench.api:api",
        "Measure how fast webs accept questions and answer polls, and what event streams cost.",
        "helixq bench api --json",
    ),
    "bench batch": Entry(
        "cli.bench.batch:batch",
        "Measure how long `helixq up` takes to accept a batch, from its first byte to its last valid line.",
        "helixq bench batch",
    ),
    "bench engine": Entry(
        "cli.bench.engine:engine",
        "Compare the batching engine with the reference engine.",
        "helixq bench engine --json",
    ),
    "bench history": Entry(
        "cli.bench.history:history",
        "Measure lists with filters, full-text search, single histories, and what the index costs writes.",
        "helixq bench history",
    ),
    "bench idle": Entry(
        "cli.bench.idle:idle",
        "Measure the latency that an idle service adds to a job.",
        "helixq bench idle",
    ),
    "bench lora": Entry(
        "cli.bench.lora:lora",
        "Compare the extraction of adapters with mergekit.",
        "helixq bench lora",
    ),
    "bench readers": Entry(
        "cli.bench.readers:readers",
        "Measure what readers of event streams cost the web.",
        "helixq bench readers",
    ),
    "bench service": Entry(
        "cli.bench.service:service",
        "Compare `helixq up` with the reference engine alone.",
        "helixq bench service --json",
    ),
    "bench soak": Entry(
        "cli.bench.soak:soak",
        "Ask for a while at a share of the capacity, and say what grows.",
        "helixq bench soak --minutes 20 --share 0.8",
    ),
    "bench track": Entry(
        "cli.bench.track:track",
        "Compare the service with the recorded figures.",
        "helixq bench track",
    ),
    "bench workers": Entry(
        "cli.bench.workers:workers",
        "Measure jobs an hour by the number of workers, on both databases.",
        "helixq bench workers --workers 1,2,4,8 --plot workers.svg",
    ),
    "jobs agreement": Entry(
        "cli.reviewing:agreement",
        "Say how far reviewers agree: 1 if always, 0 if no more often than by chance.",
        "helixq jobs agreement --since 2026-11-01",
    ),
    "jobs cancel": Entry("cli.jobs:cancel", "Cancel jobs.", "helixq jobs cancel ID"),
    "jobs delete": Entry(
        "cli.removal:delete",
        "Delete jobs with their histories, whether they have ended or not.",
        "helixq jobs delete --metadata team=a --dry-run",
    ),
    "jobs erase": Entry(
        "cli.removal:erase",
        "Erase texts of jobs that have ended, with their copies in the job.",
        "helixq jobs erase ID --text /question\nhelixq jobs erase --owner alice --all",
    ),
    "jobs export": Entry(
        "cli.exports:export",
        "Export jobs to a file, the oldest first.",
        "helixq jobs export -o pairs.parquet --shape preference",
    ),
    "jobs import": Entry(
        "cli.imports:import_",
        "Import the histories of a file into the database, with their proofs.",
        "helixq jobs import jobs.jsonl.zst --key VKEY",
    ),
    "jobs list": Entry(
        "cli.jobs:list_",
        "List jobs, newest first, or those that match a query.",
        "helixq jobs list --status failed --limit 100\nhelixq jobs list -q '\"blue sky\"' --json id,question",
    ),
    "jobs log-key": Entry(
        "cli.trust:log_key",
        "Print the public keys of the transparency log, the newest first.",
        "helixq jobs log-key",
    ),
    "jobs new-log": Entry(
        "cli.trust:new_log",
        "Continue the transparency log under a new name, after an older backup was restored.",
        "helixq jobs new-log",
    ),
    "jobs proof": Entry(
        "cli.proofs:proof",
        "Print the proof that a job is in the transparency log: a C2SP tlog-proof file.",
        "helixq jobs proof ID -o job.tlog-proof",
    ),
    "jobs replay": Entry(
        "cli.jobs:replay",
        "Run jobs again as new jobs, and compare the texts.",
        "helixq jobs replay ID\nhelixq jobs replay --since 2026-01-01 --sample 100",
    ),
    "jobs retry": Entry(
        "cli.jobs:retry",
        "Continue failed jobs from their first unfinished stage.",
        "helixq jobs retry ID",
    ),
    "jobs review": Entry(
        "cli.reviewing:review",
        "Review a job that has ended.",
        "helixq jobs review ID --regeneration -1 --note 'It is metres.'",
    ),
    "jobs review-queue": Entry(
        "cli.reviewing:queue",
        "List jobs to review next, with the ratings so far.",
        "helixq jobs review-queue --seed 7 --limit 50\nhelixq jobs review-queue --kind disagreements",
    ),
    "jobs show": Entry(
        "cli.jobs:show",
        "Show a job and the attempts at its stages.",
        "helixq jobs show ID\nhelixq jobs show ID --json attempts",
    ),
    "jobs verify": Entry(
        "cli.trust:verify",
        "Check that nothing that was recorded has changed; the exit status is 1 if something has.",
        "helixq jobs verify\nhelixq jobs verify job.tlog-proof --key VKEY",
    ),
    "jobs watch": Entry(
        "cli.jobs:watch",
        "Follow a job to its end, and print its texts as they are written.",
        "helixq jobs watch ID",
    ),
    "keys create": Entry(
        "cli.keys:create", "Make a key and print it.", "helixq keys create laptop --days 90"
    ),
    "keys list": Entry(
        "cli.keys:list_",
        "List all keys, revoked and expired ones included.",
        "helixq keys list --json id,name,state",
    ),
    "keys revoke": Entry("cli.keys:revoke", "Revoke a key for good.", "helixq keys revoke ID"),
    "lora convert": Entry(
        "cli.lora:convert",
        "Convert pickled adapters to safetensors, once.",
        "helixq lora convert rhysjones/HelixNet-LMoE-Actor",
    ),
    "lora extract": Entry(
        "cli.lora:extract",
        "Extract an adapter from a full fine-tune of a base.",
        "helixq lora extract --base mistral --tuned actor-full --out actor",
    ),
    "lora inspect": Entry(
        "cli.lora:inspect",
        "Show what an adapter holds, and whether it can be batched.",
        "helixq lora inspect actor",
    ),
    "lora merge": Entry(
        "cli.lora:merge",
        "Merge an adapter into its base, as a full model.",
        "helixq lora merge --base mistral --adapter actor --out merged",
    ),
    "webhooks create": Entry(
        "cli.webhooks:create",
        "Register URL and print the secret that signs its webhooks.",
        "helixq webhooks create https://example.com/hook --events response.completed",
    ),
    "webhooks delete": Entry(
        "cli.webhooks:delete",
        "Delete an endpoint with its deliveries.",
        "helixq webhooks delete ID",
    ),
    "webhooks deliveries": Entry(
        "cli.webhooks:deliveries",
        "List the deliveries to an endpoint, the newest first.",
        "helixq webhooks deliveries ID --status failed",
    ),
    "webhooks list": Entry("cli.webhooks:list_", "List the endpoints.", "helixq webhooks list"),
    "webhooks ping": Entry(
        "cli.webhooks:ping",
        "Send a test event to an endpoint, from this machine, and print the reply's status.",
        "helixq webhooks ping ID",
    ),
    "webhooks redeliver": Entry(
        "cli.webhooks:redeliver", "Send an event again.", "helixq webhooks redeliver ID"
    ),
    "webhooks rotate": Entry(
        "cli.webhooks:rotate",
        "Give an endpoint a new secret and print it.",
        "helixq webhooks rotate ID",
    ),
    "webhooks show": Entry("cli.webhooks:show", "Show an endpoint.", "helixq webhooks show ID"),
    "webhooks update": Entry(
        "cli.webhooks:update",
        "Change an endpoint, and enable it if it is disabled.",
        "helixq webhooks update ID --url https://example.com/new",
    ),
}
