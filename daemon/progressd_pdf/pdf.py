"""Make the scanned pages of a PDF cleaner, keep all others, and report the progress on stdout.

    python -m progressd_pdf.pdf INPUT OUTPUT --options '{"dpi": 300, "ocr": true}'

Every line on stdout is one JSON object: `progress`, `page_preview`, `log`, or finally `completed` or `error`.
"""

import argparse
import base64
import functools
import io
import itertools
import math
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec

try:
    from PIL import Image

    from progressd_pdf.page import Options, PageConversion, Thumbnail
    from progressd_pdf.result import PageEdit, Result
    from progressd_pdf.source import POINTS_PER_INCH, ConversionError, Sheet, Source, SourcePage
    from progressd_pdf.tesseract import ORIENTATION_DPI, Orientation, Tesseract
except ModuleNotFoundError as missing:
    if __name__ == "__main__":
        message = f"{missing.name} is not installed: install progressd[pdf]"
        print(msgspec.json.encode({"type": "error", "data": {"message": message}}).decode())
        sys.exit(1)
    raise

PREVIEW_WIDTH, PREVIEW_HEIGHT = 320, 480  # the maximum size of a preview in pixels
PREVIEW_BYTES = 20_000  # bytes of a preview's JPEG; every watcher receives it: 6 MB for 300 pages
OCR_DPI = 300  # dots per inch that tesseract was trained with; more takes longer and reads no better
OCR_PIXELS = 40_000_000  # pixels of a page for tesseract, a newspaper page at 300 dpi; each takes about 10 bytes
CLOCKWISE = {
    90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


def emit(kind: str, **data: object) -> None:
    """Write one line to stdout, without buffering."""
    sys.stdout.buffer.write(msgspec.json.encode({"type": kind, "data": data}) + b"\n")
    sys.stdout.buffer.flush()


class Steps:
    """Report the steps. Their total is known from the start: pages that are kept skip theirs."""

    def __init__(self, sheets: Sequence[Sheet], options: Options) -> None:
        counts = [sheet.bands * len(options.band_stages()) + options.ocr for sheet in sheets]
        self._ends = list(itertools.accumulate(counts))
        self._pages = len(sheets)
        self._total = sum(counts) + 1
        self._begun = 0

    def begin(self, name: str) -> None:
        """Report that a step begins and the previous step is done."""
        emit("progress", current_step=self._begun, total_steps=self._total, step_name=name)
        self._begun += 1

    def begin_on(self, sheet: Sheet, band: int | None, stage: str) -> None:
        """Begin a stage of a page, or of a band if the page has several bands."""
        part = "" if band is None or sheet.bands == 1 else f", part {band + 1} of {sheet.bands}"
        self.begin(f"{stage} page {sheet.number} of {self._pages}{part}")

    def end_page(self, sheet: Sheet) -> None:
        """Skip the remaining steps of a page."""
        self._begun = self._ends[sheet.number - 1]

    def finish(self, notice: str) -> None:
        """Report that the last step is done."""
        emit("progress", current_step=self._total, total_steps=self._total, step_name=f"Finished{notice}")


class Conversion:
    """The conversion of one document from `source` to `result`."""

    def __init__(self, source: Source, result: Result, options: Options, tesseract: Tesseract | None) -> None:
        self._source, self._result, self._options, self._tesseract = source, result, options, tesseract
        self._steps = Steps(source.sheets, options)
        self._orientation = Orientation() if options.rotate else None
        self._kept = self._with_text = self._read_before = 0  # pages

    def run(self) -> None:
        """Convert the pages one by one, then write the document."""
        for sheet in self._source.sheets:
            self._steps.begin_on(sheet, 0, "Rendering")  # includes reading the page
            with self._source.page(sheet) as page:
                self._with_text += page.has_text
                edit = self._clean(page) if page.scan else self._keep(page)
            self._result.edit(sheet.number - 1, edit)
            self._steps.end_page(sheet)
        self._steps.begin("Writing the document")
        self._result.save()
        self._steps.finish(self._notice())

    def _keep(self, page: SourcePage) -> PageEdit:
        """Keep a page that was not scanned. Return its edit, which can only add recognized text."""
        sheet, edit = page.sheet, PageEdit(page.geometry)
        self._kept += 1
        self._steps.begin_on(sheet, None, "Keeping")
        if self._tesseract and not page.has_text and not page.is_blank:
            edit.text = self._recognize(sheet, page.render(sheet.size_at(ocr_dpi(sheet, OCR_DPI)), None, "L"))
        emit_preview(sheet.number, preview_of(page))
        return edit

    def _clean(self, page: SourcePage) -> PageEdit:
        """Return the edit that makes a scanned page cleaner, and emit the preview of the page."""
        sheet = page.sheet
        self._source.check_size(sheet)
        edit = PageEdit(page.geometry, old_text=self._options.existing_text == "keep" or not self._tesseract)
        if self._orientation:
            edit.turn = self._orientation.turn(page.render(sheet.size_at(ocr_dpi(sheet, ORIENTATION_DPI)), None, "L"))
        recognize = self._tesseract and not (page.has_text and edit.old_text)
        self._read_before += bool(self._tesseract) and not recognize
        work = PageConversion(page, self._options)
        if work.changes:
            width, height = work.size
            preview = Thumbnail(work.size, min(PREVIEW_WIDTH / width, PREVIEW_HEIGHT / height), work.mode)
            reading = Thumbnail(work.size, ocr_dpi(sheet, work.dpi) / work.dpi, "L") if recognize else None
            self._draw(work, sheet, edit, [preview, reading] if reading else [preview])
            shown, read = preview.picture, reading.picture if reading else None
        else:
            self._steps.begin_on(sheet, None, "Keeping")
            shown = preview_of(page)
            read = page.render(sheet.size_at(ocr_dpi(sheet, work.dpi)), None, "L") if recognize else None
        if read:
            edit.text = self._recognize(sheet, read, edit.turn)
        emit_preview(sheet.number, turned(shown, edit.turn))
        return edit

    def _draw(self, work: PageConversion, sheet: Sheet, edit: PageEdit, copies: Sequence[Thumbnail]) -> None:
        """Draw the new pictures of a page, and add them to small copies."""
        edit.angle = work.angle
        height = work.size[1]
        for index in range(sheet.bands):
            if index > 0:
                self._steps.begin_on(sheet, index, "Rendering")
            band = work.band(index, functools.partial(self._steps.begin_on, sheet, index))
            self._steps.begin_on(sheet, index, "Writing")
            lower, upper = (1 - row / height for row in reversed(band.rows))
            edit.bands.append((self._result.add_picture(band.stored, work.enlarges), lower, upper))
            for miniature in copies:
                miniature.add(band)

    def _recognize(self, sheet: Sheet, picture: Image.Image, turn: int = 0) -> bytes:
        assert self._tesseract is not None
        self._steps.begin_on(sheet, None, "Recognising text on")
        return self._tesseract.text_layer(turned(picture, turn), picture.width * POINTS_PER_INCH / sheet.width)

    def _notice(self) -> str:
        """Return what the user should know about the result, as the end of the last step's name."""
        pages = len(self._source.sheets)
        notices = []
        if not self._result.is_changed:
            notices.append(
                "this PDF already has text, and was not changed" if self._with_text else "nothing to improve"
            )
        elif self._kept:
            notices.append(f"{self._kept} of {pages} pages were not scanned, and were kept")
        if self._read_before and self._result.is_changed:
            notices.append(f"{self._read_before} of {pages} scans have text, which was kept")
        if self._result.damaged:
            notices.append(f"the content of page {self._result.damaged[0]} is damaged, so it was kept")
        if self._result.is_signed and self._result.is_changed:
            notices.append("the digital signature is no longer valid")
        return f": {'; '.join(notices)}" if notices else ""


def preview_of(page: SourcePage) -> Image.Image:
    """Draw a small copy of a page as it is."""
    dpi = min(PREVIEW_WIDTH / page.sheet.width, PREVIEW_HEIGHT / page.sheet.height) * POINTS_PER_INCH
    large = page.render(page.sheet.size_at(3 * dpi), None, "RGB", annotations=True)  # pdfium drops dots of a scan
    return large.resize(page.sheet.size_at(dpi), Image.Resampling.BOX)


def ocr_dpi(sheet: Sheet, dpi: float) -> float:
    """Return the resolution at which tesseract reads the page, which has `dpi`."""
    area = sheet.width * sheet.height / POINTS_PER_INCH**2
    return min(dpi, OCR_DPI, math.sqrt(OCR_PIXELS / area))


def turned(picture: Image.Image, turn: int) -> Image.Image:
    """Return a picture turned clockwise by 0, 90, 180 or 270 degrees."""
    return picture.transpose(CLOCKWISE[turn]) if turn else picture


def emit_preview(number: int, picture: Image.Image) -> None:
    """Emit the preview of a finished page, with the best JPEG quality that fits its limit."""
    for quality in (75, 60, 45, 30, 15):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= PREVIEW_BYTES:
            break
    emit(
        "page_preview",
        page_number=number,
        preview_base64=base64.b64encode(buffer.getvalue()).decode(),
        stage="Finished",
        width=picture.width,
        height=picture.height,
    )


def convert(arguments: argparse.Namespace) -> None:
    """Convert the document. Raises ConversionError."""
    try:
        options = msgspec.json.decode(arguments.options, type=Options)
    except msgspec.DecodeError as error:
        raise ConversionError(f"The options are not valid: {error}.") from None
    tesseract = Tesseract(options.language or arguments.ocr_language) if options.ocr else None
    source = Source(arguments.input, options.dpi)
    with Result(arguments.input, arguments.output) as result:
        if result.page_count != len(source.sheets):
            raise ConversionError("The PDF is damaged: its list of pages is not clear.")
        Conversion(source, result, options, tesseract).run()
    emit("completed", page_count=len(source.sheets))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status.

    Errors are sentences on stdout. The traceback of a defect is on stderr.
    """
    parser = argparse.ArgumentParser(prog="python -m progressd_pdf.pdf", description=__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--options", default="{}", metavar="JSON")
    parser.add_argument("--ocr-language", default="eng", metavar="LANG", help="as tesseract names it, eng+deu for two")
    try:
        convert(parser.parse_args(argv))
    except BrokenPipeError:
        os._exit(128 + signal.SIGPIPE)  # the daemon died; Python would report the error again at exit
    except ConversionError as error:
        return fail(str(error))
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, MemoryError):
            return fail("The PDF needs more memory than a job may have.")
        if isinstance(error, OSError):
            return fail(f"Cannot write the result: {error.strerror}.")
        return fail("The PDF cannot be converted because of an unexpected error.")
    return 0


def fail(message: str) -> int:
    """Report the error and return the exit status."""
    emit("error", message=message)
    return 1


if __name__ == "__main__":
    sys.exit(main())
