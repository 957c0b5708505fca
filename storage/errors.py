"""Every error that is ours, as one tree; who catches a branch says nothing of the rest.

    PipelineError                what a person is told in a line, without a traceback
    ├── Refused (ValueError)     what was asked for or given is wrong: the text says what, where and which knob
    │   ├── ConfigError          a config, all its problems at once           pipeline/config/tree.py
    │   ├── NotAdopted           an artifact that is not today's              tasks/running/adopt.py
    │   ├── BadRecord            a chat, a pair, a text: counted, never fatal pipeline/formats/bad.py
    │   ├── NotAnItem            a record of an exam: counted, never fatal    pipeline/evaluation/gold.py
    │   ├── NoChampion           a preset without a champion to use           storage/champions.py
    │   ├── SourceChanged        a file that is not what was hashed           pipeline/sources/state.py
    │   └── Damaged              an artifact that is not whole                storage/whole.py
    ├── Failed (RuntimeError)    work did not end well: the text says whether running again helps
    │   ├── StoreError           the store cannot be used                     storage/store.py
    │   ├── LeaseLost            another machine took the key                 storage/lease.py
    │   ├── ShardFailed          a job of a data stage                        pipeline/running/executor.py
    │   ├── JudgeFailed          an endpoint that compares answers            pipeline/sampling/openai_judge.py
    │   ├── WorkerFailed         processes of a training or scoring stage     tasks/running/failure.py
    │   ├── DataFailed           the run that was to make the data stages     flows/handover.py
    │   └── ServiceError         Prefect or MLflow does not start             flows/processes.py
    └── DiskFull (OSError)       path, need and what is free                  storage/room.py

Workers (``model/``) import nothing of ours and have their own, ``Diverged``, ``Pointless`` and ``CheckpointMismatch``,
which reach a person through ``WorkerFailed``, and ``TemplateRefuses``: a conversation that a chat template does not
take is counted like a bad record. ``Reached``, ``Broken``, ``Unusable``, ``_Enough`` and ``_Retired`` are signals
between two functions of a module and never leave it. ``Wrong`` (flows/serving/errors.py) is what a client of the
server is told.
"""

from __future__ import annotations


class PipelineError(Exception):
    """What a person is told in a line."""


class Refused(PipelineError, ValueError):
    """What was asked for or given is wrong."""


class Failed(PipelineError, RuntimeError):
    """Work did not end well."""
