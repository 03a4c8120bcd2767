"""One program, one question: `python -m benchmarks.questions.NAME`."""
