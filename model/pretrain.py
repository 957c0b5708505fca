"""Worker of the pretrain stage: ``python -m model.pretrain --spec FILE`` (see :mod:`model.training.trainer`)."""

from __future__ import annotations

from model.training.trainer import Trainer, work

if __name__ == "__main__":
    work(Trainer)
