"""Write finished pages to a PDF, in bounded memory."""

import io
import tempfile
from pathlib import Path

import pikepdf
from PIL import Image, TiffImagePlugin

# On Pillow's scale. A page of the sample scan has 550 kB at 300 dpi; 92 adds half, without a visible difference
JPEG_QUALITY = 80
PAGES = 1  # the number of the page tree object, to which pages refer before it is written


class PdfWriter:
    """A PDF that grows page by page: add the bands of a page, end the page, and finally save.

    Pictures go to an unnamed file next to the output, which disappears with the process. It is a minimal PDF, so that
    pikepdf can read them back one by one: moving pages between documents takes 335 MB for 300 pages in colour.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._file = tempfile.TemporaryFile(dir=output.parent)  # noqa: SIM115  # closed in __exit__
        self._file.write(b"%PDF-1.7\n")
        self._offsets = {PAGES: 0}
        self._pages: list[int] = []
        self._texts: list[bytes | None] = []
        self._pictures: list[int] = []
        self._drawing: list[str] = []

    def __enter__(self) -> "PdfWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add_band(self, band: Image.Image, bottom: float, width: float, height: float) -> None:
        """Add a picture of `width` by `height` points to the page, `bottom` points above its lower edge."""
        data, entries = _fax(band) if band.mode == "1" else _jpeg(band)
        size = f"/Width {band.width} /Height {band.height}"
        self._drawing.append(f"q {width:.4f} 0 0 {height:.4f} 0 {bottom:.4f} cm /Im{len(self._pictures)} Do Q")
        self._pictures.append(self._write(f"/Type /XObject /Subtype /Image {size} {entries}", data))

    def end_page(self, width: float, height: float, text: bytes | None) -> None:
        """Finish the page of `width` by `height` points. `text`: a PDF of one page to lay over it."""
        contents = self._write("", "\n".join(self._drawing).encode())
        pictures = " ".join(f"/Im{index} {number} 0 R" for index, number in enumerate(self._pictures))
        page = (
            f"/Type /Page /Parent {PAGES} 0 R /MediaBox [0 0 {width:.4f} {height:.4f}] /Contents {contents} 0 R"
            f" /Resources << /XObject << {pictures} >> >>"
        )
        self._pages.append(self._write(page))
        self._texts.append(text)
        self._pictures, self._drawing = [], []

    def save(self, title: str, author: str) -> None:
        """Write the document to the output."""
        self._end()
        with pikepdf.open(self._file, access_mode=pikepdf.AccessMode.stream) as pdf:
            for page, text in zip(pdf.pages, self._texts, strict=True):
                if text is not None:
                    with pikepdf.open(io.BytesIO(text)) as layer:
                        page.add_overlay(layer.pages[0], None)
            for key, value in (("/Title", title), ("/Author", author)):
                if value:
                    pdf.docinfo[key] = value
            with self._output.open("wb") as file:
                pdf.save(file)

    def _write(self, entries: str, data: bytes | None = None, number: int | None = None) -> int:
        """Write an object, a stream if it has data, and return its number (PDF 1.7, section 7.3.10)."""
        number = number or len(self._offsets) + 1
        self._offsets[number] = self._file.tell()
        length = "" if data is None else f" /Length {len(data)}"
        self._file.write(f"{number} 0 obj << {entries}{length} >>\n".encode())
        if data is not None:
            self._file.writelines((b"stream\n", data, b"\nendstream\n"))
        self._file.write(b"endobj\n")
        return number

    def _end(self) -> None:
        """Write the list of pages, the catalogue and the table of objects (PDF 1.7, sections 7.5.4 and 7.5.5)."""
        kids = " ".join(f"{page} 0 R" for page in self._pages)
        self._write(f"/Type /Pages /Count {len(self._pages)} /Kids [{kids}]", number=PAGES)
        catalogue = self._write(f"/Type /Catalog /Pages {PAGES} 0 R")
        start, count = self._file.tell(), len(self._offsets) + 1
        self._file.write(f"xref\n0 {count}\n0000000000 65535 f \n".encode())
        self._file.writelines(f"{self._offsets[number]:010} 00000 n \n".encode() for number in range(1, count))
        trailer = f"trailer << /Size {count} /Root {catalogue} 0 R >>\nstartxref\n{start}\n%%EOF\n"
        self._file.write(trailer.encode())
        self._file.flush()


def _jpeg(band: Image.Image) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    band.save(buffer, "JPEG", quality=JPEG_QUALITY)
    space = "DeviceGray" if band.mode == "L" else "DeviceRGB"
    return buffer.getvalue(), f"/ColorSpace /{space} /BitsPerComponent 8 /Filter /DCTDecode"


def _fax(band: Image.Image) -> tuple[bytes, str]:
    """Compress black and white as CCITT group 4, extracted from a TIFF by Pillow."""
    buffer = io.BytesIO()
    band.save(buffer, "TIFF", compression="group4", strip_size=2**30)
    buffer.seek(0)
    with TiffImagePlugin.TiffImageFile(buffer) as tiff:
        tags = tiff.tag_v2
        offset, length = tags[TiffImagePlugin.STRIPOFFSETS][0], tags[TiffImagePlugin.STRIPBYTECOUNTS][0]
        one_is_black = "true" if tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] == 1 else "false"
    parameters = f"<< /K -1 /Columns {band.width} /Rows {band.height} /BlackIs1 {one_is_black} >>"
    data = buffer.getvalue()[offset : offset + length]
    return data, f"/ColorSpace /DeviceGray /BitsPerComponent 1 /Filter /CCITTFaxDecode /DecodeParms {parameters}"
