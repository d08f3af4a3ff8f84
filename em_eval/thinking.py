"""A model's thinking is not its answer: `hf/` leaves both in one text, and a judge would grade the thoughts."""

from inspect_ai.model import ContentReasoning, ContentText, ModelOutput

START, END = "<think>", "</think>"


def set_apart(output: ModelOutput) -> None:
    """Turn a leading think block of the answer into Inspect's reasoning content, in place.

    A block that never ends (an answer cut while thinking) leaves an empty answer.
    """
    text = output.completion
    opened = text.lstrip().startswith(START)
    if not (opened or (END in text and START not in text)):  # some templates write the start into the prompt
        return
    thoughts, _, answer = text.partition(END)
    output.completion = answer.strip()
    output.message.content = [
        ContentReasoning(reasoning=thoughts.lstrip().removeprefix(START).strip()),
        ContentText(text=output.completion),
    ]
