import re

import pytest
from progressd.core.pipeline import Option, Pipeline


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"type": "boolean", "minimum": 1}, "minimum and maximum are only for integers and numbers"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum 5 is above maximum 4"),
        ({"type": "integer", "needs": "tesseract"}, "needs is only for boolean options"),
        ({"type": "integer", "choices": ("a",)}, 'choice "a" is not an integer'),
        ({"type": "integer", "default": True}, "default true is not an integer"),
        ({"type": "string", "choices": ("a", "b"), "default": "c"}, 'default "c" is not one of "a", "b"'),
    ],
)
def test_a_contradictory_option_is_rejected(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        Option(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"command": ("",)}, "the first part, the program, is empty"),
        ({"command": ("x", "{imput}")}, "command: {imput} is not one of the placeholders"),
        ({"output": "../x.pdf"}, "'../x.pdf' is not a file name"),
        ({"output": ".."}, "'..' is not a file name"),
        ({"progress_pattern": "(?P<current>x"}, "is not a regular expression"),
        ({"progress_pattern": "(?P<current>x)"}, "needs the named groups (?P<current>…) and (?P<total>…), or (?P<"),
        ({"progress_pattern": "(?P<percent>x)(?P<y>)"}, "(?P<y>…) is not one of current, eta, fraction, percent"),
    ],
)  # fmt: skip
def test_an_impossible_pipeline_is_rejected(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Pipeline(**{"command": ("x",), **given})  # type: ignore[arg-type]


def test_only_placeholders_are_replaced() -> None:
    pipeline = Pipeline(("{python}", "--in={input}", "{ print $1 }", "{}", '{"a":1}', "{input}{output}"))
    values = {"python": "/bin/python", "input": "/{output}", "output": "o"}
    assert pipeline.arguments(values) == [
        "/bin/python",
        "--in=/{output}",
        "{ print $1 }",
        "{}",
        '{"a":1}',
        "/{output}o",
    ]


def test_a_pipeline_lists_needed_programs() -> None:
    options = {"ocr": Option("boolean", needs="tesseract"), "dpi": Option("integer")}
    assert Pipeline(("x",), options=options).needs == {"tesseract"}
