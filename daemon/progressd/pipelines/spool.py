"""Puts finished pages together as a PDF in bounded memory; it never leaves a half-written file under the final name."""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import pikepdf
from pikepdf import Array, Dictionary, Name
from PIL import Image, TiffImagePlugin

JPEG_QUALITY = 80
"""Pillow's scale."""

PART_BYTES = 48 * 2**20
"""Bytes of pictures kept in memory before they go to a part on disk: a book of 2 GB is then some 40 open files."""


class PdfSpool:
    """A PDF that grows page by page: add the bands of a page, end the page, and at last save.

    Its parts are files without a name beside the output, so nothing is left of them however the process ends.
    Only while saving is there a named one, `pending`, to be removed if the process is stopped just then.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self.pending = output.with_name(f".{output.name}.{os.getpid()}.part")
        self._files = contextlib.ExitStack()
        self._parts: list[pikepdf.Pdf] = []
        self._part = pikepdf.new()
        self._part_bytes = 0
        self._pictures: list[pikepdf.Object] = []
        self._drawing: list[str] = []

    def add_band(self, band: Image.Image, bottom: float, width: float, height: float) -> None:
        """Add a picture, `width` by `height` points, to the page being built, `bottom` points above its edge."""
        data, entries = _fax(band) if band.mode == "1" else _jpeg(band)
        entries |= {"/Type": Name.XObject, "/Subtype": Name.Image, "/Width": band.width, "/Height": band.height}
        self._drawing.append(f"q {width:.4f} 0 0 {height:.4f} 0 {bottom:.4f} cm /Im{len(self._pictures)} Do Q")
        self._pictures.append(pikepdf.Stream(self._part, data, entries))
        self._part_bytes += len(data)

    def end_page(self, width: float, height: float, text: bytes | None) -> None:
        """Finish the page, `width` by `height` points, with the one-page PDF `text` laid over it."""
        pictures = {f"/Im{index}": picture for index, picture in enumerate(self._pictures)}
        entries = Dictionary(
            Type=Name.Page,
            MediaBox=Array([0, 0, round(width, 4), round(height, 4)]),
            Contents=pikepdf.Stream(self._part, "\n".join(self._drawing).encode()),
            Resources=Dictionary(XObject=Dictionary(pictures)),
        )
        self._part.pages.append(pikepdf.Page(self._part.make_indirect(entries)))
        if text is not None:
            with pikepdf.open(io.BytesIO(text)) as layer:
                self._part.pages[-1].add_overlay(layer.pages[0], None)
        self._pictures, self._drawing = [], []
        if self._part_bytes >= PART_BYTES:
            self._put_away()

    def save(self, title: str, author: str) -> None:
        """Write the pages to the output, all of them or nothing, and only return once they are on the disk."""
        self._put_away()
        with pikepdf.new() as whole, self._files:
            for part in self._parts:
                whole.pages.extend(part.pages)
            for key, value in (("/Title", title), ("/Author", author)):
                if value:
                    whole.docinfo[key] = value
            try:
                with self.pending.open("wb") as file:
                    whole.save(file)
                    file.flush()
                    os.fsync(file.fileno())
                self.pending.replace(self._output)
            finally:
                self.pending.unlink(missing_ok=True)

    def _put_away(self) -> None:
        """Move the pages in memory to a file; pikepdf reads their pictures back one by one when it saves."""
        if not self._part.pages:
            return
        file = tempfile.TemporaryFile(dir=self._output.parent)  # noqa: SIM115  # closed with the others, in save
        self._files.enter_context(file)
        self._part.save(file)
        self._part.close()
        part = pikepdf.open(file, access_mode=pikepdf.AccessMode.stream)
        self._parts.append(self._files.enter_context(part))
        self._part, self._part_bytes = pikepdf.new(), 0


def _jpeg(band: Image.Image) -> tuple[bytes, dict[str, object]]:
    buffer = io.BytesIO()
    band.save(buffer, "JPEG", quality=JPEG_QUALITY)
    space = Name.DeviceGray if band.mode == "L" else Name.DeviceRGB
    return buffer.getvalue(), {"/Filter": Name.DCTDecode, "/ColorSpace": space, "/BitsPerComponent": 8}


def _fax(band: Image.Image) -> tuple[bytes, dict[str, object]]:
    """Black and white as CCITT group 4, taken out of the TIFF that Pillow wraps it in."""
    buffer = io.BytesIO()
    band.save(buffer, "TIFF", compression="group4", strip_size=2**30)
    buffer.seek(0)
    with TiffImagePlugin.TiffImageFile(buffer) as tiff:
        tags = tiff.tag_v2
        offset, length = tags[TiffImagePlugin.STRIPOFFSETS][0], tags[TiffImagePlugin.STRIPBYTECOUNTS][0]
        zero_is_black = tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] == 1
    parameters = Dictionary(K=-1, Columns=band.width, Rows=band.height, BlackIs1=zero_is_black)
    return buffer.getvalue()[offset : offset + length], {
        "/Filter": Name.CCITTFaxDecode,
        "/DecodeParms": parameters,
        "/ColorSpace": Name.DeviceGray,
        "/BitsPerComponent": 1,
    }
