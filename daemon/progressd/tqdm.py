"""A short name for `progressd.integrations.tqdm`."""

from progressd.integrations.tqdm import tqdm, trange

__all__ = ["tqdm", "trange"]
