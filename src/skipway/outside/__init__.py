"""Models from outside: named as `hf:NAME`, `timm:NAME`, `torchvision:NAME` or `package.module:factory`, and built."""

from skipway.outside.answers import answering
from skipway.outside.find import FORMS, find, fingerprint, hides
from skipway.outside.sources import Settings, Source, suggestion

__all__ = ["FORMS", "Settings", "Source", "answering", "find", "fingerprint", "hides", "suggestion"]
