"""Human-readable sizes."""


def readable_size(size: int) -> str:
    """Return a number of bytes as text, in powers of 1024: 17 B, 38.1 MiB."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1023.95:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"
