"""What the tokenizers do for a caller: train, encode, decode, special tokens, messages."""

import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import minbpe.regex
from minbpe import (
    GPT2_SPLIT_PATTERN,
    GPT4_SPLIT_PATTERN,
    BasicTokenizer,
    DataError,
    RegexTokenizer,
    Tokenizer,
    TokenizerFileError,
    UsageError,
    base,
)
from minbpe.corpus import count_words
from minbpe.model_file import Model, write_model
from minbpe.pretokens import PATTERNS
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


# ---- beyond minbpe: batches, streams, offsets


def test_a_batch_is_the_ids_of_each_text() -> None:
    """As `encode` gives them, special tokens included."""
    tokenizer = trained()
    tokenizer.register_special_tokens({"<e>": 270})
    texts = ["the dew", "", "the<e>"]
    assert tokenizer.encode_batch(iter(texts), "all") == [tokenizer.encode(t, "all") for t in texts]
    with pytest.raises(DataError, match="contains the special token"):
        tokenizer.encode_batch(texts)


def test_unknown_names_in_allowed_special_are_refused() -> None:
    """A misspelt special token would silently be text."""
    tokenizer = trained()
    with pytest.raises(UsageError, match=r"allowed_special has '<x>'.* no special token.*: none"):
        tokenizer.encode("text", {"<x>"})
    tokenizer.register_special_tokens({"<e>": 270})
    with pytest.raises(UsageError, match=r"allowed_special has '<x>'.* there are: '<e>'"):
        tokenizer.encode("text", ["<e>", "<x>"])


@pytest.mark.parametrize("pattern", [GPT2_SPLIT_PATTERN, GPT4_SPLIT_PATTERN, r"\w+|\W+"])
def test_a_stream_has_the_ids_of_the_joined_text(
    monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """However it is cut: within words, runs of spaces, special tokens and surrogate pairs."""
    monkeypatch.setattr(base, "STREAM_BLOCK", 16)
    tokenizer = RegexTokenizer(pattern)
    tokenizer.train(TEXT, 270)
    tokenizer.register_special_tokens({"<a b>": 270, "<a b>\n c": 271, " d": 272})
    rng = random.Random(4)
    pieces = [
        "the ",
        "  ",
        "\n",
        "theory",
        " ",
        "<a b>",
        "<a b>\n c",
        " d",
        "é",
        "\ud83d",
        "\ude00",
    ]
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 40)))
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 12)))
        parts = [text[i:j] for i, j in pairwise([0, *cuts, len(text)])]
        for allowed in ("all", "none", {"<a b>"}):
            arrays = list(tokenizer.encode_stream(iter(parts), allowed))
            ids = [idx for array in arrays for idx in array.tolist()]
            assert ids == tokenizer.encode(text, allowed), (text, parts)
    with pytest.raises(DataError, match="contains the special token '<a b>'"):
        list(tokenizer.encode_stream(["the theory of the <a", " b> thaw", "the dew " * 9]))


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_spaces_before_a_special_token_stay_together_in_a_stream(
    monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """The token ends the text before it, so a run keeps its last space. Nor are letters halved."""
    monkeypatch.setattr(base, "STREAM_BLOCK", 4)
    tokenizer = RegexTokenizer(pattern)
    tokenizer.train("a    b" * 9 + "a\U0001d41a" * 9, 270)
    assert b"   " in tokenizer.vocab.values()
    tokenizer.register_special_tokens({"<e>": 270, "<e><e><e>": 271})
    for text in ["a   <e>b" * 3, "a   b   <e><e><e>" * 3, "a b a\ud835\udc1a " * 3]:
        ids = [idx for array in tokenizer.encode_stream(text, "all") for idx in array.tolist()]
        assert ids == tokenizer.encode(text, "all")


def test_case_14_a_text_is_not_cut_in_or_beside_a_special_token() -> None:
    """Nor may a cut be told before the text shows that none lies across it."""
    tokenizer = trained()
    tokenizer.register_special_tokens({"<| a.b |>": 300, "|": 301})
    text = "ab cd <| a.b |> ef gh"
    ends = [end for end in range(1, len(text)) if tokenizer.find_cut(text + "x" * 20, end) == end]
    assert [text[end:] for end in ends] == [" cd <| a.b |> ef gh", " gh"]
    assert tokenizer.find_cut("ab cd <| a.", 3) is None
    assert tokenizer.find_cut("ab cdefghijklmn") == 2
    assert tokenizer.find_cut("ab cdefghijk") == 2
    assert tokenizer.find_cut("ab cdefghij") is None
    assert BasicTokenizer().find_cut("ab cd") is None


def test_a_stream_of_text_without_spaces_is_encoded_before_it_ends() -> None:
    """Chinese has line ends and commas."""
    tokenizer = trained()
    stream = tokenizer.encode_stream("人人生而自由，在尊严和权利上一律平等。" for _ in range(9999))
    assert len(next(stream)) < 3 * base.STREAM_BLOCK


def test_a_stream_is_encoded_before_it_ends() -> None:
    """Memory is bounded: little is read ahead of what has come out."""
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield "the theory of the thaw " * 1000

    stream = trained().encode_stream(texts())
    assert sum(map(len, stream)) == len(trained().encode("the theory of the thaw " * 100_000))
    stream = trained().encode_stream(texts())
    read = 0
    next(stream)
    assert read < 10
    whole = BasicTokenizer().encode_stream(texts())
    read = 0
    assert len(next(whole)) == 2_300_000
    assert read == 100


def test_offsets_are_the_characters_of_each_token() -> None:
    """A character that tokens share belongs to each; surrogates count as what replaces them."""
    tokenizer = RegexTokenizer()
    tokenizer.train("the the", 258)
    tokenizer.register_special_tokens({"<é>": 258})
    assert tokenizer.offsets("") == []
    assert tokenizer.offsets("the é") == [(0, 3), (3, 4), (4, 5), (4, 5)]
    assert tokenizer.offsets("é<é>the", "all") == [(0, 1), (0, 1), (1, 4), (4, 7)]
    assert tokenizer.offsets("\ud83d\ude00x") == [(0, 1)] * 4 + [(1, 2)]
    with pytest.raises(DataError, match="contains the special token"):
        tokenizer.offsets("<é>")


def test_case_12_a_catastrophic_pattern_ends_training_and_encoding() -> None:
    """With the pattern in the message, whether the check on small texts or the limit finds it."""
    for pattern, text in [("(a+)+$", "fine"), (r"(\p{Greek}+)+$", "α" * 3000 + "!")]:
        tokenizer = RegexTokenizer(pattern, time_limit=0.2)
        with pytest.raises(DataError) as caught:
            tokenizer.train(text, 257)
        assert f"{pattern!r} ran longer than its limit of 0.2 s on" in str(caught.value)
    with pytest.raises(DataError, match=r"Greek.*limit of 0.2 s on the text, after ''"):
        tokenizer.encode(text)


def test_case_12_the_time_limit_stays_when_a_file_is_loaded(tmp_path: Path) -> None:
    """Its pattern may be anybody's."""
    tokenizer, loaded = RegexTokenizer("(a+)+$"), RegexTokenizer(time_limit=0.1)
    tokenizer.train_counts({"aa": 2}, 257)
    tokenizer.save(tmp_path / "t")
    loaded.load(tmp_path / "t.model")
    with pytest.raises(DataError, match=r"limit of 0.1 s"):
        loaded.encode("a" * 3000 + "!")


def test_a_script_without_a_main_guard_trains_by_a_pattern_of_its_own(tmp_path: Path) -> None:
    """The process that tries the pattern does not run the script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from minbpe import RegexTokenizer\n"
        "tokenizer = RegexTokenizer(r'\\w+|\\W')\n"
        "tokenizer.train('ab ab', 257)\n"
        "print(tokenizer.merges)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{(97, 98): 256}\n", "")


def test_tokens_are_counted_by_words() -> None:
    """As many as encoding gives."""
    tokenizer = trained()
    counts = count_words(TEXT + "naïve zzz", GPT4_SPLIT_PATTERN)
    assert tokenizer.count_tokens(counts) == len(tokenizer.encode(TEXT + "naïve zzz"))
    assert tokenizer.count_tokens({}) == 0


def test_counted_words_train_as_their_text() -> None:
    """`train` is counting and `train_counts`."""
    first, second = RegexTokenizer(), RegexTokenizer()
    first.train("hug hugs thug hug", 262)
    second.train_counts({"hug": 1, " hugs": 1, " thug": 1, " hug": 1}, 262)
    assert first.merges == second.merges
    assert second.requested_vocab_size == 262
    with pytest.raises(DataError, match="the corpus is empty"):
        second.train_counts({}, 262)
    with pytest.raises(UsageError, match="vocab_size=1 must be"):
        second.train_counts({"hug": 1}, 1)


@pytest.mark.parametrize("pattern", [" ", "\n| a", "x\r\ny|\\\\s \t", "é 中|😀 ", '"|\\"'])
def test_loading_keeps_the_pattern_and_odd_special_tokens(tmp_path: Path, pattern: str) -> None:
    """Karpathy's `load` forgets the one, and its file breaks on both."""
    tokenizer, loaded = RegexTokenizer(pattern), RegexTokenizer()
    tokenizer.train(TEXT, 262)
    tokenizer.register_special_tokens({"two words": 262, "é\n中 ": 263, " ": 264, '"': 265})
    tokenizer.save(tmp_path / "t")
    loaded.load(tmp_path / "t.model")
    assert loaded.pattern == pattern
    text = 'the theory é\n中  two words of " thaw'
    assert loaded.encode(text, "all") == tokenizer.encode(text, "all")
    assert loaded.encode_ordinary(text) == tokenizer.encode_ordinary(text)
    assert loaded.decode(loaded.encode(text, "all")) == text


# ---- what is no id, no text, no count


@pytest.mark.parametrize("idx", [-256, -257, -300, -512, -513, 1.0, 1.5, "a", None, [1], 2**63])
def test_what_is_no_id_is_refused_by_name(idx: object) -> None:
    """Among many, alone, and in an array; a table of tokens takes -1 for the last."""
    tokenizer = BasicTokenizer()
    for ids in ([idx], [1, 2, idx, 3], [*range(200)] * 50 + [idx]):
        with pytest.raises(DataError) as error:
            tokenizer.decode_bytes(ids)  # type: ignore[arg-type]
        assert f"id {idx} does not exist in this vocabulary of 256" == str(error.value)


def test_arrays_that_are_no_ids_are_refused() -> None:
    """By what is wrong in them; ids of any whole type are taken."""
    tokenizer = BasicTokenizer()
    for ids, message in [
        (np.array([1.0, 2.0]), r"id 1\.0 does not exist"),
        (np.array([[1]]), r"id \[1\] does not exist"),
        (np.array([3, -257]), r"id -257 does not exist"),
        (np.array(65), r"a sequence of whole numbers, not 65"),
        (65, r"a sequence of whole numbers, not 65"),
    ]:
        with pytest.raises(DataError, match=message):
            tokenizer.decode(ids)  # type: ignore[arg-type]
    for kind in (np.int8, np.uint16, np.int64, object):
        assert tokenizer.decode(np.array([65, 66], kind)) == "AB"
    assert tokenizer.decode([np.int64(65), True]) == "A\x01"  # type: ignore[list-item]
    assert tokenizer.decode(np.array([])) == ""


def test_a_special_token_put_in_by_hand_has_no_bytes() -> None:
    """The message says how to add one."""
    tokenizer = BasicTokenizer()
    tokenizer.special_tokens["<e>"] = 500
    with pytest.raises(DataError, match=r"id 500 does not exist.*with register_special_tokens"):
        tokenizer.decode([500])


@pytest.mark.parametrize("kind", [BasicTokenizer, RegexTokenizer])
@pytest.mark.parametrize("given", [b"abc", None, 5, ["abc"]])
def test_what_is_no_text_is_refused(kind: type[Tokenizer], given: object) -> None:
    """With the remedy, by whatever way it is encoded."""
    tokenizer = kind()
    message = f"needs text, not {type(given).__name__}; decode it first"
    text: str = given  # type: ignore[assignment]
    for special in ({}, {"<e>": 300}):
        tokenizer.register_special_tokens(special)
        for rule in ("none_raise", "none", "all"):
            with pytest.raises(UsageError, match=message):
                tokenizer.encode(text, rule)
        for encode in (tokenizer.encode_ordinary, tokenizer.encode_array, tokenizer.offsets):
            with pytest.raises(UsageError, match=message):
                encode(text)
        with pytest.raises(UsageError, match=message):
            list(tokenizer.encode_stream(["a", text]))
    with pytest.raises(UsageError, match="train needs text, not NoneType"):
        tokenizer.train(None, 300)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"abab": 0, "cd": 1}, "'abab' has the count 0, which must be 1 or more"),
        ({"abab": -3}, "'abab' has the count -3"),
        ({"abab": 2.5}, "'abab' has the count 2.5"),
        ({b"abab": 2}, "a pre-token must be text that UTF-8 can express, not b'abab'"),
        ({"\ud800a": 2}, r"UTF-8 can express, not '\\ud800a'"),
        ({"ab": 2**62, "abc": 2**62}, "at most 1152921504606846976 can be"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts: dict[str, int], message: str) -> None:
    """And the tokenizer stays as it was."""
    tokenizer = trained()
    before = tokenizer.digest()
    with pytest.raises(DataError, match=message):
        tokenizer.train_counts(counts, 300)
    assert tokenizer.digest() == before
    tokenizer.train_counts({"abab": np.int64(3)}, 257)  # type: ignore[dict-item]
    assert tokenizer.merges == {(97, 98): 256}


@pytest.mark.parametrize("size", [300.0, "300"])
def test_a_vocabulary_is_a_whole_number(size: int) -> None:
    """Named in the message."""
    with pytest.raises(UsageError, match=f"vocab_size={size!r} must be"):
        RegexTokenizer().train("abab", size)


# ---- surrogates and special tokens, as in tiktoken


def test_special_tokens_are_looked_for_after_surrogates_are_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But "none_raise" looks at the text as it came; both as tiktoken does."""
    monkeypatch.setattr(base, "STREAM_BLOCK", 3)
    tiktoken = pytest.importorskip("tiktoken", reason="the peer is not installed")
    special = {"😀": 300, "\ufffd": 301, "<😀>": 302}
    tokenizer = RegexTokenizer()
    tokenizer.register_special_tokens(special)
    peer = tiktoken.Encoding(
        "x",
        pat_str=GPT4_SPLIT_PATTERN,
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens=special,
    )
    assert tokenizer.encode("a\ud83d\ude00b", "all") == [97, 300, 98]
    assert tokenizer.encode("a\ud83db", "all") == [97, 301, 98]
    assert tokenizer.offsets("a\ud83d\ude00b", "all") == [(0, 1), (1, 2), (2, 3)]
    rng = random.Random(2)
    for _ in range(300):
        text = "".join(rng.choices(["a", " ", "<", ">", "\ud83d", "\ude00", ".\n"], k=20))
        ids = peer.encode(text, allowed_special="all")
        assert tokenizer.encode(text, "all") == ids
        assert [i for part in tokenizer.encode_stream(text, "all") for i in part.tolist()] == ids
        assert len(tokenizer.offsets(text, "all")) == len(ids)
        ids = peer.encode(text)
        assert tokenizer.encode(text) == ids
        assert [i for part in tokenizer.encode_stream(text) for i in part.tolist()] == ids


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_stream_is_not_cut_beside_a_special_token_of_surrogates(
    monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """Spaces before it stay together, and no token is halved."""
    monkeypatch.setattr(base, "STREAM_BLOCK", 4)
    tokenizer = RegexTokenizer(pattern)
    tokenizer.train("a    b" * 9, 270)
    tokenizer.register_special_tokens({"😀😀 😀😀": 300, "\ufffd b": 301, "x 😀": 302})
    rng = random.Random(6)
    for _ in range(300):
        parts = ["\ud83d\ude00", "\ud83d\ude00", " ", "   ", "b", "a", "x ", "\ud83d"]
        text = "".join(rng.choices(parts, k=30))
        ids = [i for part in tokenizer.encode_stream(text, "all") for i in part.tolist()]
        assert ids == tokenizer.encode(text, "all"), ascii(text)


# ---- files whose pattern cannot work; programs written for karpathy's minbpe


@pytest.mark.parametrize("pattern", ["(", "", "(?r)a"])
def test_a_file_whose_pattern_cannot_work_is_broken(tmp_path: Path, pattern: str) -> None:
    """Exit code 4, and the tokenizer stays as it was; version 1 likewise."""
    path = tmp_path / "t.model"
    write_model(path, Model(pattern, []))
    old = tmp_path / "v1.model"
    old.write_text(f"minbpe v1\n{pattern}\n0\n97 98\n")
    tokenizer = trained()
    before = tokenizer.digest(), tokenizer.encode("the dew")
    for broken in [path, old] if pattern else [path]:
        with pytest.raises(TokenizerFileError, match="split pattern") as error:
            tokenizer.load(broken)
        assert str(error.value).startswith(f"{broken}: ")
        assert error.value.exit_code == 4
    assert before == (tokenizer.digest(), tokenizer.encode("the dew"))


def test_names_of_karpathys_modules_are_there() -> None:
    """A program's imports and its look at special tokens."""
    assert base.get_stats([1, 1]) == {(1, 1): 1}
    assert base.merge([1, 1], (1, 1), 2) == [2]
    assert minbpe.regex.GPT2_SPLIT_PATTERN == GPT2_SPLIT_PATTERN
    assert minbpe.regex.GPT4_SPLIT_PATTERN == GPT4_SPLIT_PATTERN
    tokenizer = trained()
    assert tokenizer.inverse_special_tokens == {}
    tokenizer.register_special_tokens({"<e>": 300, "<f>": 301})
    assert tokenizer.inverse_special_tokens == {300: "<e>", 301: "<f>"}
