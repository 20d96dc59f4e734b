"""The tokenizer of GPT-2 and GPT-4: a pattern splits text first, and merges stay inside the pieces.

Adds to `base` the split (see `minbpe.pretokens`). This module's name is minbpe's; inside the
package, `import regex` is still the library, as imports are absolute.
"""

from minbpe.base import Tokenizer
from minbpe.model_file import Model, RankModel
from minbpe.pretokens import GPT2_SPLIT_PATTERN as GPT2_SPLIT_PATTERN  # karpathy's place for it
from minbpe.pretokens import GPT4_SPLIT_PATTERN as GPT4_SPLIT_PATTERN  # and for it
from minbpe.pretokens import TIME_LIMIT


class RegexTokenizer(Tokenizer):
    """Byte-pair encoding of the pieces that `pattern` (default: GPT-4's) finds.

    A pattern of your own may be such that it takes for ever. Training and encoding raise DataError
    when it takes more than `time_limit` CPU seconds, and as many again for each mebibyte of a text.

    Raises UsageError for a pattern that is empty or does not compile.
    """

    def __init__(self, pattern: str | None = None, *, time_limit: float = TIME_LIMIT) -> None:
        super().__init__(GPT4_SPLIT_PATTERN if pattern is None else pattern, time_limit=time_limit)

    def _refusal(self, model: Model | RankModel) -> str | None:
        if isinstance(model, RankModel):
            return "is a tokenizer by ranks; load it with GPT4Tokenizer.from_file"
        if model.pattern is None:
            return "has no split pattern; load it with BasicTokenizer"
        return None
