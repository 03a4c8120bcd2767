"""Spans of completions for a tracing back end, over OTLP. Imported only where they are wanted."""
