"""The ladder's texts from three public repositories on GitHub, at fixed commits.

    eltec   COST-ELTeC/ELTeC-eng, level 1: 99 novels of 1840-1920, TEI. Texts public domain, markup
            CC BY 4.0 (English Novel Corpus, ed. Lou Burnard, 2021, doi 10.5281/zenodo.4662490)
    novels  computationalstylistics/100_english_novels: 98 of 1839-1930, plain; authors died by 1941
    docs    MicrosoftDocs/win32, desktop-src: prose of 48,000 Markdown files. CC BY 4.0, Microsoft
            Corporation and contributors

Changes: markup removed, typographic characters replaced by ASCII, one paragraph per line, repeated
paragraphs left out (of novels, those of 80 characters or more). The SHA-256 sums in data/ladder.py
are those of the uncompressed results.

Known defects, kept because the sums are preregistered: a printed text without empty lines becomes
"paragraphs" of up to 459,567 characters, whose repetitions are not found. "Clara Vaughan" is in
eltec and novels, so that about 1 MB is seen twice in one pass. Novels that are in both also share
their paragraphs below 80 characters. Of the held-out text of eltec+novels, 1.2 % is in the training
text too: 399 of 32,768 pieces of 64 bytes, 292 of them in block 192, the rest in blocks 960, 1088,
1408 and 1664.
"""

import bz2
import re
import tarfile
import unicodedata
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from data import new_folder

ARCHIVE = "https://github.com/{}/archive/{}.tar.gz"
SECONDS = 60  # network timeout
NAMESPACE = "{http://www.tei-c.org/ns/1.0}"
PARAGRAPHS = ("p", "head", "l", "label", "trailer", "quote")
LEFT_OUT = ("note", "figure", "gap")
# The first is missing from an archived copy of the repository, the next two are later than 1931,
# the last are tables of contents.
SKIPPED = ("ENG18460_Reynolds", "Galsworthy_River_1933", "Woolf_Years_1937", "/TOC.md")
ASCII = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u201c": '"', "\u201d": '"',
    "\u201e": '"', "\u201f": '"', "\u2012": "-", "\u2013": "-", "\u2014": "--", "\u2026": "...",
    "\u00a0": " ", "\u00ad": None, "\ufeff": None})
EMPTY_LINE = re.compile(r"\n\s*\n")
FEWEST_EMPTY_LINES = 10  # with fewer, each line of a text is a paragraph or a printed line
CLOSED = re.compile(r"[.!?:][\"')\]]*$")
# Replacements in a Markdown file, in this order: front matter, comments, images, links by their
# text, tags, escapes, and the entities that stand for a character of ASCII.
MARKUP = tuple((re.compile(pattern, re.DOTALL), replacement) for pattern, replacement in (
    (r"\A---\n.*?\n---\n", ""), (r"<!--.*?-->", ""), (r"!\[[^\]]*\]\([^)]*\)", ""),
    (r"\[([^\]]*)\]\([^)]*\)", r"\1"), (r"</?[A-Za-z][^>]*>", " "),
    (r"\\([\\_*\[\]#<>.~|])", r"\1"), ("&nbsp;", " "), ("&lt;", "<"), ("&gt;", ">"),
    ("&amp;", "&")))
FEWEST_CHARACTERS, FEWEST_WORDS = 60, 8  # of a line of prose
LEAST_PROSE, PROSE = 0.9, " ,.'"  # least share of letters and of these characters in it


class Source(NamedTuple):
    """Files of a repository: those under a folder, with a suffix. paragraphs: yields those of a
    file's content. repeated: characters from which on a repeated paragraph is left out."""

    repository: str
    commit: str
    under: str
    suffix: str
    paragraphs: Callable[[str], Iterable[str]]
    repeated: int


def build(folder: str) -> str:
    """Download and clean the texts of SOURCES[folder], write them to data/cache/<folder>, and
    return `folder`."""
    seen: set[str] = set()
    with new_folder(folder) as path:
        for name, source in SOURCES[folder].items():
            url = ARCHIVE.format(source.repository, source.commit)
            with urllib.request.urlopen(url, timeout=SECONDS) as response, \
                    tarfile.open(fileobj=response, mode="r|gz") as archive:
                files = {member.name.partition("/")[2]: content.read()
                         for member in archive if member.isfile()
                         and f"/{source.under}" in member.name
                         and member.name.endswith(source.suffix)
                         and (content := archive.extractfile(member))}
            lines = text(files, source.paragraphs, source.repeated, seen)
            (path / f"{name}.txt.bz2").write_bytes(bz2.compress(lines))
    return folder


def text(files: dict[str, bytes], paragraphs: Callable[[str], Iterable[str]], repeated: int,
         seen: set[str]) -> bytes:
    """Concatenate the paragraphs of the files (path -> content), sorted by path, one per line.
    Those of `repeated` characters or more are left out if they are in `seen`, and otherwise added
    to it."""
    lines = []
    for path in sorted(files):
        if any(name in path for name in SKIPPED):
            continue
        for line in paragraphs(files[path].decode("utf-8")):
            key = re.sub("[^a-z0-9]", "", line.lower())
            if len(line) < repeated or key not in seen:
                lines.append(f"{line}\n")
            if len(line) >= repeated:
                seen.add(key)
    return "".join(lines).encode()


def of_tei(xml: str) -> Iterator[str]:
    """Yield the paragraphs of a TEI document's <text>, without notes, figures and gaps."""
    parts: list[str] = []

    def visit(element: ElementTree.Element) -> None:
        tag = element.tag.removeprefix(NAMESPACE)
        if tag in LEFT_OUT:
            return
        edge = "\0" if tag in PARAGRAPHS else ""
        parts.append(edge + (element.text or ""))
        for child in element:
            visit(child)
            parts.append(child.tail or "")
        parts.append(edge)

    whole = ElementTree.fromstring(xml.removeprefix("\ufeff")).find(f"{NAMESPACE}text")
    assert whole is not None  # the archives are of fixed commits
    visit(whole)
    yield from filter(None, map(clean, "".join(parts).split("\0")))


def of_print(content: str) -> Iterator[str]:
    """Yield the paragraphs of a plain text, separated by empty lines or one per line. One that
    begins with a lowercase letter continues the one before, unless that ends with [.!?:]."""
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    apart = len(EMPTY_LINE.findall(content)) >= FEWEST_EMPTY_LINES
    whole = ""
    for line in map(clean, EMPTY_LINE.split(content) if apart else content.split("\n")):
        if line and whole and re.match("[a-z]", line) and not CLOSED.search(whole):
            whole += f" {line}"
        elif line:
            if whole:
                yield whole
            whole = line
    if whole:
        yield whole


def of_markdown(content: str) -> Iterator[str]:
    """Yield the lines of prose of a Markdown file: long ones, but for rows of tables."""
    for pattern, replacement in MARKUP:
        content = pattern.sub(replacement, content)
    for line in map(clean, content.split("\n")):
        prose = sum(character.isalpha() or character in PROSE for character in line)
        if (len(line) >= FEWEST_CHARACTERS and len(line.split()) >= FEWEST_WORDS
                and not line.startswith("|") and prose >= LEAST_PROSE * len(line)):
            yield line


def clean(content: str) -> str:
    """Normalize to NFC, typographic characters to ASCII, white space to single spaces."""
    return " ".join(unicodedata.normalize("NFC", content).translate(ASCII).split())


SOURCES = {  # folder -> text -> source; few need docs, some 400 MB of download
    "ladder": {
        "eltec": Source("COST-ELTeC/ELTeC-eng", "3db3b6738a836f0e1b276b6c9703e42f4297f978",
                        "level1/", ".xml", of_tei, 80),
        "novels": Source("computationalstylistics/100_english_novels",
                         "143e601875d70e195f2cc5ebd8b034609271194d", "corpus/", ".txt", of_print,
                         80)},
    "ladder_docs": {
        "docs": Source("MicrosoftDocs/win32", "47e64c189dcb1c1a42c221380ccf0ec81cc82d4b",
                       "desktop-src/", ".md", of_markdown, 0)},
}
