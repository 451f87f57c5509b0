"""Who teaches: a model in memory, a cache on disk, a URL."""
