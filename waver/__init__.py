"""An OpenAI-compatible server that spends compute where a language model is uncertain.

Each package beside this file is one layer: `entropy` <- `engines` <- `policies` <- `server`, with `retrieval`,
`clients` and `training` beside them. In a checkout they are symbolic links to the folders at the root; in an installed
wheel they are folders.
"""

__version__ = "0.1.0"
