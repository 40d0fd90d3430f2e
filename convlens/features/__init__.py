"""Features of many images: read ahead, embedded in batches, written so that a kill cannot hurt.

    image_list   which files a folder, some paths or a list mean    extract     images -> a folder of features
    loader       files -> batches of images with their features     output_dir  its files, and the order they appear in
    embedder     torch, or an exported graph                        journal     which images are done for good
    tables       Parquet; the only home of pyarrow                  row_files   .npy and .safetensors files that grow

Galleries are built by the same modules. Importing the package loads none of them.
"""
