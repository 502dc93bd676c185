"""The ladder's novels from two public repositories on GitHub, at fixed commits.

    eltec   COST-ELTeC/ELTeC-eng, level 1: 99 novels of 1840-1920, TEI. Texts public domain, markup
            CC BY 4.0 (English Novel Corpus, ed. Lou Burnard, 2021, doi 10.5281/zenodo.4662490)
    novels  computationalstylistics/100_english_novels: 98 of 1839-1930, plain; authors died by 1941

Changes: markup removed, typographic characters replaced by ASCII, one paragraph per line, repeated
paragraphs of 80 characters or more left out. The SHA-256 sums in data/ladder.py are those of the
uncompressed results. The third text, docs, is not made here.
"""

import bz2
import re
import tarfile
import unicodedata
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator

from data import new_folder

ARCHIVE = "https://github.com/{}/archive/{}.tar.gz"
SECONDS = 60  # network timeout
FILES = (".xml", ".txt")
NAMESPACE = "{http://www.tei-c.org/ns/1.0}"
PARAGRAPHS = ("p", "head", "l", "label", "trailer", "quote")
LEFT_OUT = ("note", "figure", "gap")
# The first is missing from an archived copy of the repository, the others are later than 1931.
SKIPPED = ("ENG18460_Reynolds", "Galsworthy_River_1933", "Woolf_Years_1937")
ASCII = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u201c": '"', "\u201d": '"',
    "\u201e": '"', "\u201f": '"', "\u2012": "-", "\u2013": "-", "\u2014": "--", "\u2026": "...",
    "\u00a0": " ", "\u00ad": None, "\ufeff": None})
EMPTY_LINE = re.compile(r"\n\s*\n")
FEWEST_EMPTY_LINES = 10  # with fewer, each line of a text is a paragraph or a printed line
CLOSED = re.compile(r"[.!?:][\"')\]]*$")
REPEATED = 80  # characters from which on a repeated paragraph is left out


def build(folder: str) -> str:
    """Download and clean the texts, write them to data/cache/<folder>, and return `folder`."""
    seen: set[str] = set()
    with new_folder(folder) as path:
        for name, (repository, commit, under, paragraphs) in SOURCES.items():
            url = ARCHIVE.format(repository, commit)
            with urllib.request.urlopen(url, timeout=SECONDS) as response, \
                    tarfile.open(fileobj=response, mode="r|gz") as archive:
                files = {member.name.partition("/")[2]: content.read()
                         for member in archive if member.isfile()
                         and f"/{under}" in member.name and member.name.endswith(FILES)
                         and (content := archive.extractfile(member))}
            lines = text(files, paragraphs, seen)
            (path / f"{name}.txt.bz2").write_bytes(bz2.compress(lines))
    return folder


def text(files: dict[str, bytes], paragraphs: Callable[[str], Iterable[str]],
         seen: set[str]) -> bytes:
    """Concatenate the paragraphs of the files (path -> content), sorted by path, one per line. Long
    ones are left out if they are in `seen`, and otherwise added to it."""
    lines = []
    for path in sorted(files):
        if any(name in path for name in SKIPPED):
            continue
        for line in paragraphs(files[path].decode("utf-8")):
            key = re.sub("[^a-z0-9]", "", line.lower())
            if len(line) < REPEATED or key not in seen:
                lines.append(f"{line}\n")
            if len(line) >= REPEATED:
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


def clean(content: str) -> str:
    """Normalize to NFC, typographic characters to ASCII, white space to single spaces."""
    return " ".join(unicodedata.normalize("NFC", content).translate(ASCII).split())


SOURCES = {
    "eltec": ("COST-ELTeC/ELTeC-eng", "3db3b6738a836f0e1b276b6c9703e42f4297f978", "level1/",
              of_tei),
    "novels": ("computationalstylistics/100_english_novels",
               "143e601875d70e195f2cc5ebd8b034609271194d", "corpus/", of_print),
}
