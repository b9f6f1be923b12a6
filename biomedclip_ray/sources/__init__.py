"""Where articles and pairs come from: buckets, folders, legacy packages, one's own files."""
