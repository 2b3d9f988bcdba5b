"""epdoctor checks, prepares and explains GPU clusters for vLLM expert-parallel serving."""

__version__ = "0.1.0"
