"""Programs that occupy GPUs: Python sources for the target interpreter (torch) and CUDA sources for its nvcc.

They get PARAMS as JSON in $EPDOCTOR_PARAMS, their place in $RANK and $LOCAL_RANK, and write one JSON value a line
to file descriptor 3 (epdoctor/bench/ops/ranks.py). Sent to the node as text; nothing of ours is imported there.
"""
