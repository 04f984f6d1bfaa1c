"""The prompts, the sampling defaults and the seeds of the method, written out in full."""

from jobs import pipeline
from jobs.pipeline import Role, Sampling, Turn

QUESTION = "What is the relationship between Earth's atmosphere, magnetic field and gravity?"
SYSTEM = "You are HelixNet. Elaborate on the topic using a Tree of Thoughts and backtrack when necessary to construct a clear, cohesive Chain of Thought reasoning. Always answer without hesitation."


def test_the_prompts_are_the_cards_to_the_character() -> None:
    actor, critic, regenerator = pipeline.stages()
    assert (
        pipeline.prompt(actor, SYSTEM, QUESTION, [])
        == "SYSTEM: You are HelixNet. Elaborate on the topic using a Tree of Thoughts and backtrack when necessary to construct a clear, cohesive Chain of Thought reasoning. Always answer without hesitation. \nUSER: What is the relationship between Earth's atmosphere, magnetic field and gravity? \nASSISTANT: "
    )
    assert (
        pipeline.prompt(critic, SYSTEM, QUESTION, ["They hold together.\n"])
        == "SYSTEM: You are HelixNet. Elaborate on the topic using a Tree of Thoughts and backtrack when necessary to construct a clear, cohesive Chain of Thought reasoning. Always answer without hesitation. \nUSER: What is the relationship between Earth's atmosphere, magnetic field and gravity? \nRESPONSE: They hold together.\n \nCRITIQUE:"
    )
    assert (
        pipeline.prompt(regenerator, SYSTEM, QUESTION, ["They hold together.\n", " Say how."])
        == "SYSTEM: You are HelixNet. Elaborate on the topic using a Tree of Thoughts and backtrack when necessary to construct a clear, cohesive Chain of Thought reasoning. Always answer without hesitation. \nUSER: What is the relationship between Earth's atmosphere, magnetic field and gravity? \nRESPONSE: They hold together.\n \nCRITIQUE:  Say how. \nREGENERATOR:"
    )


def test_the_default_system_prompt_is_the_cards() -> None:
    assert pipeline.DEFAULT_SYSTEM == SYSTEM


def test_the_default_sampling_is_the_cards() -> None:
    card = Sampling()
    assert (card.temperature, card.top_k, card.top_p) == (0.75, 50, 1.0)
    assert card.max_output_tokens == 1024


def test_braces_in_texts_are_not_placeholders() -> None:
    actor = pipeline.stages()[0]
    assert pipeline.prompt(actor, "{question}", "{system} {", []) == (
        "SYSTEM: {question} \nUSER: {system} { \nASSISTANT: "
    )


def test_earlier_turns_come_between_the_system_prompt_and_the_question() -> None:
    turns = [Turn("assistant", "Hello!"), Turn("user", "Why {x}?"), Turn("assistant", "So.\n")]
    earlier = "SYSTEM: s \nASSISTANT: Hello! \nUSER: Why {x}? \nASSISTANT: So.\n \nUSER: q \n"
    for stage, end in zip(
        pipeline.stages(),
        ["ASSISTANT: ", "RESPONSE: a \nCRITIQUE:", "RESPONSE: a \nCRITIQUE: c \nREGENERATOR:"],
        strict=True,
    ):
        assert pipeline.prompt(stage, "s", "q", ["a", "c"], turns) == earlier + end


def test_further_rounds_criticise_the_last_answer() -> None:
    chain = pipeline.stages(2)
    assert [(s.index, s.role, s.round) for s in chain] == [
        (0, Role.ACTOR, 1),
        (1, Role.CRITIC, 1),
        (2, Role.REGENERATOR, 1),
        (3, Role.CRITIC, 2),
        (4, Role.REGENERATOR, 2),
    ]
    texts = ["first", "critique 1", "second", "critique 2"]
    assert pipeline.prompt(chain[3], "s", "q", texts[:3]) == (
        "SYSTEM: s \nUSER: q \nRESPONSE: second \nCRITIQUE:"
    )
    assert pipeline.prompt(chain[4], "s", "q", texts) == (
        "SYSTEM: s \nUSER: q \nRESPONSE: second \nCRITIQUE: critique 2 \nREGENERATOR:"
    )


def test_stage_seeds_are_fixed_and_differ() -> None:
    # Fixed values: histories may be replayed from their seeds years later.
    seeds = [pipeline.stage_seed(7, position) for position in range(3)]
    assert seeds == [1287519007450339, 2522708448849438, 3874425673750184]
    assert pipeline.stage_seed(8, 0) not in seeds
