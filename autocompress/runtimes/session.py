"""Opening model.onnx, without torch: a process that only runs an artifact need not load half a gigabyte that the artifact does not use."""

from pathlib import Path

import onnxruntime

FILE = "model.onnx"


def open_session(folder: Path, threads: int) -> onnxruntime.InferenceSession:
    """The artifact in ``folder`` on the CPU, loaded as it is for every number that is reported."""
    return onnxruntime.InferenceSession(folder / FILE, session_options(threads), providers=["CPUExecutionProvider"])


def session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
