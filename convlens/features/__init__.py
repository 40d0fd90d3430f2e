"""Features of many pictures: reading ahead, embedding in batches, and files that a kill cannot hurt.

    sources.py    folders, files and lists of pictures    extracting.py  pictures -> a folder of features
    pictures.py   a file -> what an embedder takes        folder.py      its files, and the order they appear in
    ahead.py      threads that read ahead, in order       committing.py  rows to disk, then their line in the journal
    embedder.py   torch, or an exported graph             journal.py     what has been done for good
    batches.py    pictures -> features, batch by batch    appending.py   files of rows that grow and are cut back
    settings.py   what two runs must agree in             layouts.py     .npy and .safetensors
    manifest.py   what a finished folder says             tables.py      Parquet; the only home of pyarrow

The gallery is filled through ``batches.py`` as well. Importing this package itself loads none of it.
"""
