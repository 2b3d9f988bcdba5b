"""Operations that a worker runs on a node: Python 3.6 scripts with PARAMS and emit(value), one file each."""
