"""The chain: stages in order, each kept by content, measured, held against gates, told in a report and a lineage."""
