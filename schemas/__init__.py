"""The contract: records, codecs, validation, errors. Imports nothing else of Manyray."""
