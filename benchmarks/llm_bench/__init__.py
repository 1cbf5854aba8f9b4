"""Parts of the language engine's benchmark (`python -m benchmarks.llm_engine`)."""
