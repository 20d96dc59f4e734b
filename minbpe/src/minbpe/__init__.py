"""Byte-pair-encoding tokenizers, from the algorithm up."""

from minbpe.base import Tokenizer
from minbpe.basic import BasicTokenizer
from minbpe.errors import DataError, ResourceError, TokenizerError, TokenizerFileError, UsageError
from minbpe.gpt import GPT4Tokenizer, RankTokenizer, load_tokenizer
from minbpe.pretokens import GPT2_SPLIT_PATTERN, GPT4_SPLIT_PATTERN
from minbpe.published import Ranks, load_ranks
from minbpe.regex import RegexTokenizer
from minbpe.textbook import get_stats, merge

__all__ = [
    "GPT2_SPLIT_PATTERN",
    "GPT4_SPLIT_PATTERN",
    "BasicTokenizer",
    "DataError",
    "GPT4Tokenizer",
    "RankTokenizer",
    "Ranks",
    "RegexTokenizer",
    "ResourceError",
    "Tokenizer",
    "TokenizerError",
    "TokenizerFileError",
    "UsageError",
    "get_stats",
    "load_ranks",
    "load_tokenizer",
    "merge",
]
