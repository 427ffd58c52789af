"""Compare the built-in PDF pipeline with OCRmyPDF: `python -m benchmarks.pdf`, or `make pdf`.

The documents are the test files of OCRmyPDF, from its source distribution, and some that this module makes. Nothing of
them is stored in the repository. With `--write`, the command writes the table into docs/benchmarks.md.
"""

import argparse
import importlib.metadata
import io
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pikepdf
import pypdfium2 as pdfium
from PIL import Image, ImageDraw, ImageFilter, ImageFont

ROOT: Final = Path(__file__).parents[1]
DOWNLOADS: Final = ROOT / "benchmarks/.build"
DOCS: Final = ROOT / "docs/benchmarks.md"
BEGIN, END = "<!-- written by make pdf -->", "<!-- end of make pdf -->"
LIMIT: Final = 300  # seconds for a document
OURS = [sys.executable, "-m", "progressd_pdf.pdf"]
THEIRS = [sys.executable, "-m", "ocrmypdf", "--skip-text", "--rotate-pages", "--deskew", "--output-type", "pdf"]
FONTS = "/usr/share/fonts/opentype/ipafont-gothic/ipag.ttf"  # Debian: fonts-ipafont-gothic
JAPANESE = (
    "日本語の文章を書くときには、",
    "句読点を正しく使うことが大切です。",
    "漢字とひらがなのつりあいにも気をつけます。",
)


@dataclass(frozen=True)
class Document:
    """A file with its text, if it is known. `text` None: the text of the file itself."""

    name: str
    path: Path
    text: str | None = None
    language: str = "eng"


@dataclass(frozen=True)
class Run:
    """The outcome of a program: its exit status, seconds of processor time, its result and what it says."""

    status: int
    seconds: float
    result: Path
    said: str


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pdf", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these documents")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        lines = list(table(Path(directory), arguments.names))
    if arguments.write:
        page = DOCS.read_text()
        head, rest = page.split(BEGIN)
        DOCS.write_text(f"{head}{BEGIN}\n{chr(10).join(lines)}\n{END}{rest.split(END)[1]}")


def table(directory: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the table, and print them."""
    header = [
        "| document | text found: progressd | OCRmyPDF | kB: before | progressd | OCRmyPDF |"
        " CPU s: progressd | OCRmyPDF | lost: progressd | OCRmyPDF |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in header:
        print(line)
        yield line
    for document in corpus(directory):
        if names and document.name not in names:
            continue
        options = {"ocr": True, "upscale": False, "language": document.language}
        ours = run([*OURS, document.path, directory / "ours.pdf", "--options", json.dumps(options)])
        theirs = run([*THEIRS, "-l", document.language, "--jobs", "1", document.path, directory / "theirs.pdf"])
        line = row(document, ours, theirs)
        print(line, flush=True)
        yield line


def row(document: Document, ours: Run, theirs: Run) -> str:
    """Return a line of the table."""
    both = (ours, theirs)
    text = [found(document, one) for one in both]
    sizes = [f"{one.result.stat().st_size / 1000:.0f}" if one.status == 0 else "" for one in both]
    seconds = [f"{one.seconds:.1f}" for one in both]
    lost = [missing(document.path, one.result) if one.status == 0 else "" for one in both]
    before = f"{document.path.stat().st_size / 1000:.0f}"
    return f"| {' | '.join([document.name, *text, before, *sizes, *seconds, *lost])} |"


def run(command: Sequence[str | Path]) -> Run:
    """Run a program within the limit of time."""
    result = next(Path(part) for part in reversed(command) if str(part).endswith(".pdf"))
    result.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT) as child:
            end = time.monotonic() + LIMIT
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > end:
                    child.kill()
                time.sleep(0.02)
            child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read().decode(errors="replace")
    return Run(child.returncode, usage.ru_utime + usage.ru_stime, result, text)


def found(document: Document, one: Run) -> str:
    """Return how many of the words are in the result, or the error."""
    if one.status:
        errors = [line for line in one.said.splitlines() if line.strip()]
        message = json.loads(errors[-1])["data"]["message"] if errors[-1].startswith("{") else errors[-1]
        return f"error: {message[:80]}"
    wanted = words(document.path) if document.text is None else split(document.text)
    if not wanted:
        return f"({words(one.result).total()} words)"
    return f"{(wanted & words(one.result)).total() / wanted.total():.0%}"


def words(path: Path) -> Counter[str]:
    """Return the words of a document."""
    with closing(pdfium.PdfDocument(path)) as pdf:
        return split(" ".join(page.get_textpage().get_text_bounded() for page in pdf))


def split(text: str) -> Counter[str]:
    """Count the words of a text; each Japanese letter is one."""
    return Counter(re.findall(r"[぀-ヿ一-鿿]|[^\W_぀-ヿ一-鿿]{2,}", text.lower()))


def missing(before: Path, after: Path) -> str:
    """Return what is in one document and not in the other."""
    with pikepdf.open(before) as one, pikepdf.open(after) as other:
        have, left = inventory(one), inventory(other)
    return ", ".join(f"{name} {left[name]}/{count}" for name, count in have.items() if left[name] < count) or "–"


def inventory(pdf: pikepdf.Pdf) -> dict[str, int]:
    """Count the parts of a document that a reader uses."""
    with pdf.open_outline() as outline:
        bookmarks = len(outline.root)
    kinds = Counter(str(item.get("/Subtype")) for page in pdf.pages for item in page.obj.get("/Annots", []))
    form = pdf.Root.get("/AcroForm", pikepdf.Dictionary())
    return {
        "pages": len(pdf.pages),
        "bookmarks": bookmarks,
        "links": kinds["/Link"],
        "fields": len(form.get("/Fields", [])),
        "notes": kinds["/Text"],
        "tags": int("/StructTreeRoot" in pdf.Root),
        "labels": int("/PageLabels" in pdf.Root),
    }


def corpus(directory: Path) -> Iterator[Document]:
    """Yield the documents."""
    files = resources()
    linn = (files / "linn.txt").read_text()
    for name in ("link", "toc", "tagged", "acroform", "vector", "graph_ocred"):
        yield Document(name, files / f"{name}.pdf")
    for name in ("linn", "ccitt", "jbig2", "skew", "rotated_skew"):
        yield Document(name, files / f"{name}.pdf", linn)
    yield Document("cardinal", files / "cardinal.pdf", linn * 4)
    for name in ("c03-29", "multipage", "cmyk", "masks", "2400dpi", "poster"):
        yield Document(name, files / f"{name}.pdf", "")
    colour = directory / "colour.pdf"
    lines = linn.splitlines()[:40]
    scan_of(lines, ImageFont.load_default(34), colour)
    yield Document("scan in colour, made", colour, "\n".join(lines))
    if Path(FONTS).exists():
        japanese = directory / "japanese.pdf"
        scan_of([JAPANESE[line % 3] for line in range(24)], ImageFont.truetype(FONTS, 40), japanese)
        yield Document("scan in Japanese, made", japanese, "".join(JAPANESE) * 8, "jpn")
    mixed = directory / "mixed.pdf"
    with pikepdf.open(files / "link.pdf") as pdf, pikepdf.open(colour) as scan:
        pdf.pages.extend(scan.pages)
        pdf.save(mixed)
    yield Document("link and the scan in colour", mixed, "\n".join([*words(files / "link.pdf").elements(), *lines]))
    yield from rejected(directory, files)


def rejected(directory: Path, files: Path) -> Iterator[Document]:
    """Yield documents that are signed, encrypted or damaged."""
    with pikepdf.open(files / "linn.pdf") as pdf:
        value = pikepdf.Dictionary(Type=pikepdf.Name.Sig, Filter=pikepdf.Name("/Adobe.PPKLite"))
        field = pikepdf.Dictionary(FT=pikepdf.Name.Sig, T=pikepdf.String("signature"), V=value)
        pdf.Root.AcroForm = pikepdf.Dictionary(Fields=pikepdf.Array([pdf.make_indirect(field)]), SigFlags=3)
        pdf.save(directory / "signed.pdf")
    yield Document("linn, signed", directory / "signed.pdf", (files / "linn.txt").read_text())
    with pikepdf.open(files / "linn.pdf") as pdf:
        pdf.save(directory / "locked.pdf", encryption=pikepdf.Encryption(owner="secret", user="secret"))
    yield Document("linn, encrypted", directory / "locked.pdf", "")
    whole = (files / "link.pdf").read_bytes()
    damaged = directory / "damaged.pdf"
    damaged.write_bytes(whole[: whole.rindex(b"startxref")])
    yield Document("link, its end missing", damaged)
    yield Document("invalid", files / "invalid.pdf", "")


def scan_of(lines: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, path: Path) -> None:
    """Write a crooked scan in colour of a page with lines of text, on yellow paper with a red stamp, at 200 dpi."""
    page = Image.new("RGB", (1654, 2339), (240, 230, 205))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text((120, 120 + 52 * number), line, (45, 40, 35), font)
    draw.ellipse((1200, 1900, 1500, 2200), outline=(190, 45, 55), width=10)
    page = page.filter(ImageFilter.GaussianBlur(0.7)).rotate(1.5, Image.Resampling.BICUBIC, fillcolor=(240, 230, 205))
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=85)
    with pikepdf.new() as pdf:
        image = pdf.make_stream(
            buffer.getvalue(),
            Type=pikepdf.Name.XObject,
            Subtype=pikepdf.Name.Image,
            Width=page.width,
            Height=page.height,
            ColorSpace=pikepdf.Name.DeviceRGB,
            BitsPerComponent=8,
            Filter=pikepdf.Name.DCTDecode,
        )
        size = [math.ceil(side * 72 / 200) for side in page.size]
        pdf.add_blank_page(page_size=(size[0], size[1]))
        pdf.pages[0].Resources = pikepdf.Dictionary(XObject=pikepdf.Dictionary(Im0=image))
        pdf.pages[0].Contents = pdf.make_stream(b"q %d 0 0 %d 0 0 cm /Im0 Do Q" % (size[0], size[1]))
        pdf.save(path)


def resources() -> Path:
    """Return the directory of OCRmyPDF's test files. Download its source distribution once."""
    version = importlib.metadata.version("ocrmypdf")
    files = DOWNLOADS / f"ocrmypdf-{version}/tests/resources"
    if not files.exists():
        DOWNLOADS.mkdir(exist_ok=True)
        pip = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", "--no-binary", "ocrmypdf"]
        subprocess.run([*pip, f"ocrmypdf=={version}", "--dest", DOWNLOADS], check=True)
        with tarfile.open(DOWNLOADS / f"ocrmypdf-{version}.tar.gz") as archive:
            archive.extractall(DOWNLOADS, filter="data")
    return files


if __name__ == "__main__":
    main()
