"""The explorer: a folder of static files in which a browser explains images by itself.

site             writes the folder: the page, the runtime, graphs, samples, a gallery, site.json
description      what site.json says: the model, its preprocessing, the methods, the colour maps
graphs           the exported graphs that the methods need
atlas_files      an atlas's pages, and what leads to them
gallery_files    a gallery's vectors and thumbnails as a page reads them
browser_runtime  onnxruntime-web
npm_package      packages of npm: fetched once, checked, kept in the cache folder
server           serves a site on 127.0.0.1
page/            the page itself, copied as it is
"""
