"""Running text for pretraining: from raw public sources to clean, de-duplicated, documented shards.

`build.build_corpus` makes a folder, `shards.read_documents` streams it, `text_sources.SOURCES` names what can go in.
"""
