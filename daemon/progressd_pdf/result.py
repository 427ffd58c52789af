"""Write the result: the input with new pictures on the pages that were worked on, in bounded memory."""

import copy
import io
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pikepdf
from pikepdf.models import PdfParsingError
from PIL import Image, TiffImagePlugin

from progressd_pdf.source import MAX_DEPTH, ConversionError, Geometry

# On Pillow's scale. 92 adds half to the size of a page, without a visible difference. An enlarged scan has no finer
# details to lose: a page of the sample scan, from 150 to 300 dpi, has 300 kB instead of 420
JPEG_QUALITY, ENLARGED_QUALITY = 80, 65
SHOWS_TEXT = frozenset(map(pikepdf.Operator, ("Tj", "TJ", "'", '"')))
POINTS_OF = ("/QuadPoints", "/Vertices", "/L", "/CL")  # entries of annotations that are lists of x and y


@dataclass
class PageEdit:
    """The changes of a page.

    `bands`: its new pictures, each an object number with its lower and upper edge as fractions of the page as it is
    seen. Without any, the page keeps its pictures. `angle`: degrees by which the new pictures are turned clockwise, and
    so must be the rest of the page. `turn`: degrees by which viewers are to turn the page clockwise, 0, 90, 180 or 270.
    `text`: a PDF of one page with invisible words, as the page is seen after the turn. `old_text`: whether the page
    keeps the text that it has.
    """

    geometry: Geometry
    bands: list[tuple[int, float, float]] = field(default_factory=list)
    angle: float = 0.0
    turn: int = 0
    text: bytes | None = None
    old_text: bool = True

    def __bool__(self) -> bool:
        return bool(self.bands or self.turn or self.text or not self.old_text)


class Result:
    """The input, to which pictures and the edits of pages are added, until it is saved.

    The pages, their objects and all that refers to them stay, such as links, bookmarks, fields, tags and labels.

    New pictures go to an unnamed file next to the output, which disappears with the process. It is a copy of the input
    with an incremental update (PDF 1.7, section 7.5.6), so that pikepdf can read the pictures one by one. Adding them
    as objects takes 190 MB for 300 pages in colour.
    """

    def __init__(self, source: Path, output: Path) -> None:
        self._source, self._output = source, output
        self._file = tempfile.TemporaryFile(dir=output.parent)  # noqa: SIM115  # closed in __exit__
        try:
            with _opened(source) as pdf:
                self.page_count = len(pdf.pages)
                self.is_signed = _is_signed(pdf)
                self._is_sound = not pdf.get_warnings()
                plain, raw = pikepdf.ObjectStreamMode.disable, pikepdf.StreamDecodeLevel.none
                pdf.save(self._file, object_stream_mode=plain, stream_decode_level=raw, compress_streams=False)
            self._start = _last_table(self._file)
            with pikepdf.open(self._file, access_mode=pikepdf.AccessMode.stream) as pdf:
                self._size = int(pdf.trailer.Size)
                kept = [key for key in ("/Root", "/Info", "/ID") if key in pdf.trailer]
                self._trailer = b" ".join(key.encode() + b" " + pdf.trailer[key].unparse() for key in kept)
        except pikepdf.PdfError:
            self._file.close()
            raise ConversionError("The PDF is damaged and cannot be read.") from None
        self._file.seek(0, io.SEEK_END)
        self._offsets: list[int] = []
        self._edits: dict[int, PageEdit] = {}
        self.damaged: list[int] = []  # pages whose content cannot be parsed; they stay as they are

    def __enter__(self) -> "Result":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def is_changed(self) -> bool:
        """Return whether any page is changed."""
        return any(self._edits.values())

    def add_picture(self, picture: Image.Image, enlarged: bool = False) -> int:
        """Store a picture, perhaps enlarged from a coarse scan, and return its object number."""
        quality = ENLARGED_QUALITY if enlarged else JPEG_QUALITY
        data, entries = _fax(picture) if picture.mode == "1" else _jpeg(picture, quality)
        number = self._size + len(self._offsets)
        self._offsets.append(self._file.tell())
        size = f"/Width {picture.width} /Height {picture.height} /Length {len(data)}"
        self._file.write(f"{number} 0 obj << /Type /XObject /Subtype /Image {size} {entries} >>\nstream\n".encode())
        self._file.writelines((data, b"\nendstream\nendobj\n"))
        return number

    def edit(self, index: int, edit: PageEdit) -> None:
        """Change the page `index`, from 0."""
        self._edits[index] = edit

    def save(self) -> None:
        """Write the document to the output. An input without changes and defects is copied."""
        if self._is_sound and not self.is_changed:
            shutil.copyfile(self._source, self._output)
            return
        self._end()
        with pikepdf.open(self._file, access_mode=pikepdf.AccessMode.stream) as pdf:
            editor = _Editor(pdf)
            for index, edit in self._edits.items():
                if edit:
                    try:
                        editor.apply(pdf.pages[index], edit)
                    except (pikepdf.PdfError, PdfParsingError):
                        self.damaged.append(index + 1)
            with self._output.open("wb") as file:
                pdf.save(file, object_stream_mode=pikepdf.ObjectStreamMode.generate)

    def _end(self) -> None:
        """Write the table of the added objects (PDF 1.7, sections 7.5.4 and 7.5.5)."""
        start = self._file.tell()
        self._file.write(f"xref\n{self._size} {len(self._offsets)}\n".encode())
        self._file.writelines(f"{offset:010} 00000 n \n".encode() for offset in self._offsets)
        size = self._size + len(self._offsets)
        self._file.write(b"trailer << /Size %d /Prev %d %s >>\n" % (size, self._start, self._trailer))
        self._file.write(b"startxref\n%d\n%%%%EOF\n" % start)
        self._file.flush()


class _Editor:
    """Apply the edits of pages to an open document."""

    def __init__(self, pdf: pikepdf.Pdf) -> None:
        self._pdf = pdf
        self._fonts: pikepdf.Object | None = None  # tesseract's, the same for all pages

    def apply(self, page: pikepdf.Page, edit: PageEdit) -> None:
        """Change a page. Text and annotations move with the pictures."""
        turning = edit.geometry.turning(edit.angle)
        if edit.bands or not edit.old_text:
            page.obj.Resources = resources = _own_resources(page.resources)
            old = self._filtered(page.obj, resources, bool(edit.bands), edit.old_text, 0)
            drawing = [b"q", turning.encode(), b"cm", old, b"Q"]
            for number, lower, upper in edit.bands:
                place = pikepdf.Matrix(1, 0, 0, upper - lower, 0, lower) @ edit.geometry.to_page()
                name = page.add_resource(self._pdf.get_object(number, 0), pikepdf.Name.XObject)
                drawing += [b"q", place.encode(), b"cm", str(name).encode(), b"Do Q"]
            page.obj.Contents = self._pdf.make_stream(b"\n".join(drawing))
            if "/Thumb" in page.obj:
                del page.obj.Thumb
        if edit.angle:
            for annotation in page.obj.get("/Annots", pikepdf.Array()):
                with suppress(AttributeError, TypeError, ValueError):  # a damaged annotation
                    _move(annotation, turning)
        if edit.text is not None:
            self._lay_over(page, edit.text, edit.geometry.to_page(edit.turn))
        if edit.turn:
            page.rotate(edit.turn, relative=True)

    def _filtered(
        self, drawn: pikepdf.Object, resources: pikepdf.Object, no_pictures: bool, text: bool, depth: int
    ) -> bytes:
        """Return the content of a page or form without pictures or text, and remove the pictures from `resources`.

        Marked content stays, since tags refer to it.
        """
        objects = resources.get("/XObject", pikepdf.Dictionary())
        kept = list[pikepdf.ContentStreamInstruction | pikepdf.ContentStreamInlineImage]()
        renamed = dict[str, pikepdf.Object | None]()
        for instruction in pikepdf.parse_content_stream(drawn):
            if isinstance(instruction, pikepdf.ContentStreamInlineImage):
                if not no_pictures:
                    kept.append(instruction)
                continue
            if instruction.operator == pikepdf.Operator("Do") and depth <= MAX_DEPTH:
                name = str(instruction.operands[0])
                if name not in renamed:
                    renamed[name] = self._without(objects.get(name), no_pictures, text, depth)
                if renamed[name] is None:
                    continue
            if text or instruction.operator not in SHOWS_TEXT:
                kept.append(instruction)
        for name, item in renamed.items():
            if item is not None:
                objects[name] = item
            elif name in objects:
                del objects[name]
        return pikepdf.unparse_content_stream(kept)

    def _without(self, item: pikepdf.Object | None, no_pictures: bool, text: bool, depth: int) -> pikepdf.Object | None:
        """Return a picture or form without pictures or text, None if nothing remains."""
        if item is None or (no_pictures and item.get("/Subtype") == pikepdf.Name.Image):
            return None
        if item.get("/Subtype") != pikepdf.Name.Form:
            return item
        form = self._pdf.make_stream(b"")
        for key, value in item.items():
            if key not in ("/Length", "/Filter", "/DecodeParms"):
                form[key] = value
        form.Resources = resources = _own_resources(item.get("/Resources"))
        form.write(self._filtered(item, resources, no_pictures, text, depth + 1))
        return form

    def _lay_over(self, page: pikepdf.Page, text: bytes, place: pikepdf.Matrix) -> None:
        """Lay invisible words over the page."""
        with pikepdf.open(io.BytesIO(text)) as layer:
            words = layer.pages[0]
            _, _, width, height = map(float, words.mediabox)
            if self._fonts is None:
                fonts = {name: self._pdf.copy_foreign(font) for name, font in words.Resources.Font.items()}
                self._fonts = self._pdf.make_indirect(pikepdf.Dictionary(fonts))
            form = self._pdf.make_stream(_contents(words))
        form.Type, form.Subtype = pikepdf.Name.XObject, pikepdf.Name.Form
        form.BBox = pikepdf.Array([0, 0, width, height])
        form.Resources = pikepdf.Dictionary(Font=self._fonts)
        page.obj.Resources = _own_resources(page.resources)
        name = page.add_resource(form, pikepdf.Name.XObject)
        place = pikepdf.Matrix(1 / width, 0, 0, 1 / height, 0, 0) @ place
        page.contents_add(b"q\n", prepend=True)
        page.contents_add(b"\nQ q %s cm %s Do Q" % (place.encode(), str(name).encode()))


def _opened(path: Path) -> pikepdf.Pdf:
    return pikepdf.open(path, access_mode=pikepdf.AccessMode.stream, suppress_warnings=True)


def _last_table(file: BinaryIO) -> int:
    """Return the position of the table of objects."""
    file.seek(-64, io.SEEK_END)
    return int(file.read().split(b"startxref")[1].split()[0])


def _is_signed(pdf: pikepdf.Pdf) -> bool:
    """Return whether the document has a digital signature: bit 1 of SigFlags (PDF 1.7, section 12.7.2), or a field."""
    form = pdf.Root.get("/AcroForm")
    if not isinstance(form, pikepdf.Dictionary):
        return False
    fields, flags = form.get("/Fields"), form.get("/SigFlags")
    signed = isinstance(fields, pikepdf.Array) and any(
        isinstance(field, pikepdf.Dictionary) and "/V" in field and field.get("/FT") == pikepdf.Name.Sig
        for field in fields
    )
    return signed or (isinstance(flags, int) and bool(flags & 1))


def _own_resources(shared: pikepdf.Object | None) -> pikepdf.Object:
    """Return a copy of resources, which other pages may share."""
    resources = pikepdf.Dictionary() if shared is None else copy.copy(shared)
    if "/XObject" in resources:
        resources.XObject = copy.copy(resources.XObject)
    return resources


def _contents(page: pikepdf.Page) -> bytes:
    parts = page.obj.Contents
    streams = parts if isinstance(parts, pikepdf.Array) else [parts]
    return b"\n".join(part.read_bytes() for part in streams)


def _move(annotation: pikepdf.Object, turning: pikepdf.Matrix) -> None:
    """Move an annotation with the page. Its rectangle stays upright."""
    left, bottom, right, top = map(float, annotation.Rect)
    x, y = turning.transform(((left + right) / 2, (bottom + top) / 2))
    across, along = abs(right - left) / 2, abs(top - bottom) / 2
    annotation.Rect = pikepdf.Array([x - across, y - along, x + across, y + along])
    for key in POINTS_OF:
        if key in annotation:
            annotation[key] = _turned(list(annotation[key]), turning)
    if "/InkList" in annotation:
        annotation.InkList = pikepdf.Array([_turned(list(line), turning) for line in annotation.InkList])


def _turned(values: Sequence[object], turning: pikepdf.Matrix) -> pikepdf.Array:
    numbers = [float(value) for value in values]  # type: ignore[arg-type]
    points: Iterable[tuple[float, float]] = zip(numbers[::2], numbers[1::2], strict=False)
    return pikepdf.Array([value for point in points for value in turning.transform(point)])


def _jpeg(band: Image.Image, quality: int) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    band.save(buffer, "JPEG", quality=quality, optimize=True)
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
