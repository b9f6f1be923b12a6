"""PubMed Central's stages: catalog, ingest, mirror."""
