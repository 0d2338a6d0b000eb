"""A picture of 640 x 480 with coarse and fine parts, as a camera's JPEG has them (about 46 KB). usage: photo.py OUT.jpg"""
import sys

import numpy
from PIL import Image

rng = numpy.random.default_rng(1)
picture = numpy.zeros((480, 640, 3))
for cells, weight in ((8, 1.0), (32, 0.5), (120, 0.2)):
    grain = Image.fromarray((rng.random((cells * 3 // 4, cells, 3)) * 255).astype("uint8"))
    picture += weight * numpy.asarray(grain.resize((640, 480), Image.BICUBIC), float)
Image.fromarray((picture / picture.max() * 255).astype("uint8")).save(sys.argv[1], quality=88)
