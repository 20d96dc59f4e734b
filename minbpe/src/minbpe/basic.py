"""The simplest tokenizer: no split, so merges may cross words, spaces and line ends.

Adds to `base` one fact: a text is a single pre-token.
"""

from minbpe.base import Tokenizer
from minbpe.model_file import Model, RankModel


class BasicTokenizer(Tokenizer):
    """Byte-pair encoding of the whole text as one sequence."""

    def __init__(self) -> None:
        super().__init__(pattern=None)

    def _refusal(self, model: Model | RankModel) -> str | None:
        if isinstance(model, RankModel):
            return "is a tokenizer by ranks; load it with GPT4Tokenizer.from_file"
        if model.pattern is not None:
            return f"has the split pattern {model.pattern!r}; load it with RegexTokenizer"
        return None
