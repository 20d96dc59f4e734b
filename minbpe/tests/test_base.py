"""What the tokenizers do for a caller: train, encode, decode, special tokens, messages."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest

from minbpe import BasicTokenizer, DataError, RegexTokenizer, Tokenizer, UsageError
from minbpe.textbook import train_textbook

TEXT = "the theory of the thaw: the den, the dew\n" * 4


def trained(vocab_size: int = 270) -> RegexTokenizer:
    """Return a tokenizer of TEXT."""
    tokenizer = RegexTokenizer()
    tokenizer.train(TEXT, vocab_size)
    return tokenizer


def test_basic_merges_across_words_and_regex_does_not() -> None:
    """The one difference between the two."""
    basic = BasicTokenizer()
    basic.train("a a a a", 257)
    assert basic.merges == {(32, 97): 256}
    assert basic.encode("a a") == [97, 256]
    basic.train("a-b a-b a-b", 270)
    assert b"a-b a-b a-b" in basic.vocab.values()
    regex = RegexTokenizer()
    regex.train("a-b a-b a-b", 270)
    assert regex.vocab == {**{k: bytes([k]) for k in range(256)}, 256: b"-b", 257: b" a"}


def test_merges_and_vocab_are_minbpes() -> None:
    """Karpathy's rule by name, against the textbook on whole texts."""
    tokenizer = BasicTokenizer()
    tokenizer.train(TEXT, 282, tie_break="minbpe")
    assert list(tokenizer.merges) == train_textbook([TEXT], 26, "minbpe")
    assert list(tokenizer.merges.values()) == list(range(256, 256 + 26))
    assert tokenizer.vocab[256] == b"".join(
        tokenizer.vocab[i] for i in next(iter(tokenizer.merges))
    )


def test_documents_in_any_order_give_the_same_tokenizer() -> None:
    """Merges are a function of the multiset of pre-tokens; an iterator will do."""
    documents = [f"text {k * 7919} of {chr(97 + k) * 3}\n" for k in range(20)]

    def one_by_one() -> Iterator[str]:
        yield from reversed(documents)

    first, second = RegexTokenizer(), RegexTokenizer()
    first.train(documents, 330)
    second.train(one_by_one(), 330)
    assert first.merges == second.merges
    assert first.digest() == second.digest()


def test_no_token_spans_two_documents() -> None:
    """Two texts are not one text."""
    apart, joined = RegexTokenizer(), RegexTokenizer()
    apart.train(["ab", "ab"], 300)
    joined.train("abab", 300)
    assert (apart.vocab_size, joined.vocab_size) == (257, 258)


def test_training_again_forgets_the_first_training() -> None:
    """Words remembered from before would come out with the old ids."""
    tokenizer = trained()
    tokenizer.encode_ordinary("the")
    tokenizer.train("th th the", 257)
    assert tokenizer.encode_ordinary("the") == [256, 101]


def test_verbose_prints_each_merge(capsys: pytest.CaptureFixture[str]) -> None:
    """In karpathy's words."""
    tokenizer, heard = BasicTokenizer(), []
    tokenizer.train("aaab", 258, verbose=True, progress=lambda *merge: heard.append(merge))
    assert capsys.readouterr().out.splitlines() == [
        "merge 1/2: (97, 97) -> 256 (b'aa') had 2 occurrences",
        "merge 2/2: (97, 98) -> 257 (b'ab') had 1 occurrences",
    ]
    assert heard == [(97, 97, 2), (97, 98, 1)]


# ---- row 15 of FAULTS.md: vocabularies and corpora that cannot work


def test_case_15_a_vocabulary_below_256_is_a_usage_error() -> None:
    """Exit code 2; 256 itself is the bytes alone."""
    with pytest.raises(UsageError, match="vocab_size=255 must be from 256, the bytes") as error:
        RegexTokenizer().train("text", 255)
    assert error.value.exit_code == 2
    with pytest.raises(UsageError, match="vocab_size=2000000 must be"):
        RegexTokenizer().train("text", 2_000_000)
    tokenizer = RegexTokenizer()
    tokenizer.train("text", 256)
    assert tokenizer.merges == {}


@pytest.mark.parametrize("corpus", ["", [], ["", ""]])
@pytest.mark.parametrize("kind", [BasicTokenizer, RegexTokenizer])
def test_case_15_an_empty_corpus_is_a_data_error(
    kind: type[Tokenizer], corpus: str | list[str]
) -> None:
    """Exit code 3."""
    with pytest.raises(DataError, match="the corpus is empty") as error:
        kind().train(corpus, 300)
    assert error.value.exit_code == 3


def test_case_15_too_small_a_corpus_stops_early_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The size reached is in the log and in `vocab_size`."""
    tokenizer = RegexTokenizer()
    with caplog.at_level(logging.WARNING, logger="minbpe"):
        tokenizer.train("hi hi", 1000)
    assert caplog.messages == [
        "the corpus has too few pairs for a vocabulary of 1000: stopped at 258"
    ]
    assert (tokenizer.vocab_size, tokenizer.requested_vocab_size) == (258, 1000)
    caplog.clear()
    tokenizer.train("hi hi", 258)
    assert caplog.messages == []


def test_bytes_and_unknown_rules_are_refused() -> None:
    """With the remedy in the message."""
    with pytest.raises(UsageError, match="train needs text, not bytes"):
        RegexTokenizer().train([b"text"], 300)  # type: ignore[list-item]
    with pytest.raises(UsageError, match="train needs text, not int"):
        RegexTokenizer().train(b"text", 300)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="tie_break='first' must be one of smallest, minbpe"):
        RegexTokenizer().train("text", 300, tie_break="first")


# ---- encoding and decoding


def test_lists_and_arrays_agree() -> None:
    """Whatever the text; arrays are the caller's own and may be changed."""
    tokenizer = trained()
    for text in ["", "the dew", "é 中 😀", TEXT]:
        array = tokenizer.encode_array(text)
        assert array.dtype == np.uint32
        assert array.tolist() == tokenizer.encode_ordinary(text) == tokenizer.encode(text)
        assert tokenizer.decode(array) == text
        array += 1


def test_ids_in_the_surrogate_range_come_out_right() -> None:
    """Ids are characters inside, and 0xD800..0xDFFF are peculiar characters."""
    tokenizer = BasicTokenizer()
    tokenizer._set_merges([(a, b) for a in range(256) for b in range(256)])
    for letter in map(chr, range(0x5D0, 0x600)):  # two bytes, D7 90 and up
        lead, tail = letter.encode()
        expected = [256 + 256 * lead + tail]
        assert 0xD800 <= expected[0] < 0xE000
        assert tokenizer.encode_ordinary(letter) == expected
        assert tokenizer.encode_array(letter).tolist() == expected
        assert tokenizer.decode(expected) == letter


@pytest.mark.parametrize("idx", [-1, 270, 10**30])
def test_an_id_that_does_not_exist_is_a_data_error(idx: int) -> None:
    """Named in the message."""
    with pytest.raises(DataError, match=rf"id {idx} does not exist in this vocabulary of 270"):
        trained().decode([0, idx])


def test_case_13_bytes_that_are_no_text_pass_through_decode_bytes() -> None:
    """NULs and invalid UTF-8 are ids like any other; decode marks what is no text."""
    tokenizer = trained()
    assert tokenizer.decode_bytes(range(256)) == bytes(range(256))
    assert tokenizer.decode([0xFF, 0x61]) == "\ufffda"
    assert tokenizer.decode(tokenizer.encode_ordinary("\0a\0")) == "\0a\0"


@pytest.mark.parametrize("kind", [BasicTokenizer, RegexTokenizer])
def test_case_13_lone_surrogates_become_replacement_characters(kind: type[Tokenizer]) -> None:
    """A pair of them is the character it stands for, as in tiktoken; training takes them too."""
    tokenizer = kind()
    tokenizer.train("a\ud800b", 258)
    for text, expected in [("a\ud800b\udfff", "a\ufffdb\ufffd"), ("\ud83d\ude00", "😀")]:
        assert tokenizer.decode(tokenizer.encode_ordinary(text)) == expected


@pytest.mark.parametrize("kind", [BasicTokenizer, RegexTokenizer])
def test_case_13_a_megabyte_of_one_character_round_trips(kind: type[Tokenizer]) -> None:
    """Training on it and encoding it: the time grows with its length, not the square of it."""
    text = "a" * 1_000_000
    tokenizer = kind()
    tokenizer.train(text, 300)
    assert len(tokenizer.encode_ordinary(text)) == 1
    tokenizer._set_merges(list(tokenizer.merges)[:10])
    assert len(tokenizer.encode_ordinary(text)) == 978
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


# ---- special tokens, row 14 of FAULTS.md


def test_case_14_special_tokens_in_text_are_an_error_unless_allowed() -> None:
    """Under -O too: karpathy's check is an assert."""
    tokenizer = trained()
    tokenizer.register_special_tokens({"<|end|>": 270})
    with pytest.raises(
        DataError, match=r"special token '<\|end\|>': pass allowed_special"
    ) as error:
        tokenizer.encode("the<|end|>")
    assert error.value.exit_code == 3
    assert tokenizer.encode("the") == tokenizer.encode_ordinary("the")


def test_case_14_special_tokens_in_text_are_text_unless_allowed() -> None:
    """Ordinary encoding never gives a special id."""
    tokenizer = trained()
    tokenizer.register_special_tokens({"<|end|>": 270, "<|pad|>": 271})
    text = "the<|end|>den<|pad|>"
    ordinary = tokenizer.encode_ordinary(text)
    assert max(ordinary) < 270
    assert tokenizer.encode(text, allowed_special="none") == ordinary
    assert tokenizer.encode(text, allowed_special=set()) == ordinary
    the, den, pad = (tokenizer.encode_ordinary(part) for part in ("the", "den", "<|pad|>"))
    assert tokenizer.encode(text, allowed_special="all") == [*the, 270, *den, 271]
    assert tokenizer.encode(text, allowed_special={"<|end|>"}) == [*the, 270, *den, *pad]
    assert tokenizer.decode([*the, 270, *den, 271]) == text


def test_an_unknown_rule_for_special_tokens_is_refused() -> None:
    """A special token's own text is a likely mistake for a set."""
    tokenizer = trained()
    with pytest.raises(UsageError, match="must be 'all', 'none', 'none_raise' or a set"):
        tokenizer.encode("text", allowed_special="<|end|>")


def test_of_special_tokens_that_begin_alike_the_longer_wins() -> None:
    """Whatever the order of registration; they may hold what a pattern would take for syntax."""
    tokenizer = RegexTokenizer()
    for names in [["<e>", "<e>+", "<e>+ é"], ["<e>+ é", "<e>+", "<e>"]]:
        tokenizer.register_special_tokens({name: 300 + len(name) for name in names})
        ids = tokenizer.encode("<e>+ é<e>+<e>", allowed_special="all")
        assert ids == [306, 304, 303]
        assert tokenizer.decode(ids) == "<e>+ é<e>+<e>"


@pytest.mark.parametrize(
    ("special", "message"),
    [
        ({"": 300}, "special token '' must be a text"),
        ({"\ud800": 300}, "must be a text"),
        ({"<e>": 97}, "special token '<e>': id 97 is the token \"a\"; the next free one is 270"),
        ({"<e>": 300, "<f>": 300}, "special tokens '<e>' and '<f>' share the id 300"),
        ({"<e>": -1}, "id -1 is not in 0..1114111"),
        ({"<e>": 2**63}, "id 9223372036854775808 is not in"),
        ({"<e>": True}, "id True is not in"),
    ],
)
def test_special_tokens_that_cannot_work_are_refused(special: dict[str, int], message: str) -> None:
    """And the tokenizer keeps those it had."""
    tokenizer = trained()
    tokenizer.register_special_tokens({"<old>": 400})
    with pytest.raises(UsageError) as error:
        tokenizer.register_special_tokens(special)
    assert message in str(error.value)
    assert tokenizer.special_tokens == {"<old>": 400}


def test_training_does_not_run_over_registered_special_tokens() -> None:
    """An id must not mean two things; a free one stays."""
    tokenizer = RegexTokenizer()
    tokenizer.register_special_tokens({"<e>": 270})
    with pytest.raises(UsageError, match="register special tokens after training"):
        tokenizer.train(TEXT, 271)
    tokenizer.train(TEXT, 270)
    assert tokenizer.encode("<e>", allowed_special="all") == [270]
    assert tokenizer.vocab_size == 271


def test_the_digest_knows_pattern_merges_and_special_tokens() -> None:
    """Two tokenizers with one digest give the same ids."""
    digests = [trained(270).digest(), trained(269).digest(), RegexTokenizer("x").digest()]
    special = trained(270)
    special.register_special_tokens({"<e>": 270})
    digests += [special.digest(), RegexTokenizer().digest(), BasicTokenizer().digest()]
    assert len(set(digests)) == len(digests)
    assert trained(270).digest() == digests[0]
