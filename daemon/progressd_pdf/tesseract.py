"""Run tesseract: recognize the text of a page, and how a page is turned.

`python -m progressd_pdf.tesseract` lists the installed languages.
"""

import io
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence

from PIL import Image

from progressd_pdf.deskew import ink_of
from progressd_pdf.source import ConversionError

# Dots per inch at which a page is turned: letters are large enough, and a part of the page takes 0.3 s
ORIENTATION_DPI = 200
PART = (1000, 700)  # pixels of that part
CELL = 50  # pixels; the part is chosen among those that begin at multiples of it
# Tesseract's confidence that a page is turned. A part and the whole of the page must agree. Turned text has 3 to 20,
# drawings and photos have less than 2
SURE = 2.5
NOT_LANGUAGES = ("osd", "equ")  # models of tesseract that find the orientation and formulas


def installed_languages() -> list[str]:
    """Return the languages that tesseract can read, none if it is not installed."""
    program = shutil.which("tesseract")
    return [name for name in _models(program) if name not in NOT_LANGUAGES] if program else []


class Tesseract:
    """Recognize text in a language (`deu+eng` for several), on one page at a time."""

    def __init__(self, language: str) -> None:
        program = shutil.which("tesseract")
        if program is None:
            raise ConversionError("Text recognition (OCR) needs tesseract, which is not installed.")
        models = _models(program)
        missing = [name for name in language.split("+") if name not in models]
        if missing:
            raise ConversionError(_explained(missing, models))
        self._command = [program, "stdin", "stdout", "-l", language]

    def text_layer(self, page: Image.Image, dpi: float) -> bytes:
        """Return a PDF of one page with the invisible words of the grey `page`."""
        return _run([*self._command, "--dpi", str(round(dpi)), "-c", "textonly_pdf=1", "pdf"], page)


class Orientation:
    """Find how pages are turned, if tesseract and its model `osd` are installed."""

    def __init__(self) -> None:
        program = shutil.which("tesseract")
        self._program = program if program and "osd" in _models(program) else None

    def __bool__(self) -> bool:
        return self._program is not None

    def turn(self, page: Image.Image) -> int:
        """Return the degrees by which the grey `page` must be turned clockwise to be upright; 0 if it is not clear.

        A part of the page shows that the page is upright, as most pages are. Otherwise the whole page must agree.
        """
        turn, confidence = self._look(_densest_part(page))
        if turn and confidence >= SURE:
            whole, confidence = self._look(page)
            if whole == turn and confidence >= SURE:
                return turn
        return 0

    def _look(self, picture: Image.Image) -> tuple[int, float]:
        """Return the turn and its confidence."""
        assert self._program is not None
        command = [self._program, "stdin", "stdout", "--psm", "0", "-l", "osd", "--dpi", str(ORIENTATION_DPI)]
        try:
            found = _run([*command, "-c", "min_characters_to_try=20"], picture).decode()
        except RuntimeError:  # too few letters
            return 0, 0.0
        turn = re.search(r"^Rotate: (90|180|270)$", found, re.MULTILINE)
        confidence = re.search(r"^Orientation confidence: ([0-9.]+)$", found, re.MULTILINE)
        return (int(turn[1]), float(confidence[1])) if turn and confidence else (0, 0.0)


def _run(command: Sequence[str], page: Image.Image) -> bytes:
    """Return what tesseract writes about the page. It uses one thread, because the daemon runs a job per core."""
    buffer = io.BytesIO()
    page.save(buffer, "PPM")
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
    done = subprocess.run(command, input=buffer.getvalue(), capture_output=True, env=environment, check=False)
    if done.returncode:
        errors = done.stderr.decode(errors="replace")
        raise RuntimeError(f"tesseract failed with exit status {done.returncode}: {errors}")
    return done.stdout


def _models(program: str) -> list[str]:
    """Return the names of tesseract's models. The first line is a title."""
    listed = subprocess.run([program, "--list-langs"], capture_output=True, text=True, check=True).stdout
    return listed.splitlines()[1:]


def _explained(missing: Iterable[str], models: Iterable[str]) -> str:
    """Return the error for languages that are not installed. Debian's packages have a hyphen for an underscore."""
    names = ", ".join(missing)
    packages = " ".join(f"tesseract-ocr-{name.lower().replace('_', '-')}" for name in missing)
    installed = ", ".join(name for name in models if name not in NOT_LANGUAGES) or "none"
    needed = f"Text recognition (OCR) needs the language {names} of tesseract, which is not installed."
    return f"{needed} Installed: {installed}. On Debian: sudo apt install {packages}"


def _densest_part(page: Image.Image) -> Image.Image:
    """Return the part of the page that has the most ink."""
    across, down = (math.ceil(side / CELL) for side in page.size)
    cells = ink_of(page.reduce(2)).resize((across, down), Image.Resampling.BOX)
    width, height = (min(count, side // CELL) for count, side in zip((across, down), PART, strict=True))
    corners = [(x, y) for y in range(down - height + 1) for x in range(across - width + 1)]
    means = {(x, y): _mean(cells.crop((x, y, x + width, y + height))) for x, y in corners}
    x, y = max(means, key=means.__getitem__)
    return page.crop((x * CELL, y * CELL, min(page.width, x * CELL + PART[0]), min(page.height, y * CELL + PART[1])))


def _mean(picture: Image.Image) -> float:
    return sum(level * count for level, count in enumerate(picture.histogram())) / (picture.width * picture.height)


if __name__ == "__main__":
    print(*installed_languages(), sep="\n")
