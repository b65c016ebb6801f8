"""Classes of the data sets that released networks were trained on, in the order of their scores.

Source: https://github.com/shelhamer/fcn.berkeleyvision.org, data/pascal-context/classes-59.txt and
        data/sift-flow/classes.txt
"""

from fcn_smp.data.voc import VOCSegmentation

PASCAL_CONTEXT = (
    *VOCSegmentation.classes,
    "bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "clothes", "computer", "cup", "door", "fence",
    "floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain", "mouse", "curtain", "platform",
    "sign", "plate", "road", "rock", "shelves", "sidewalk", "sky", "snow", "bedcloth", "track", "tree", "truck",
    "wall", "water", "window", "wood",
)  # fmt: skip

SIFT_FLOW = (
    "awning", "balcony", "bird", "boat", "bridge", "building", "bus", "car", "cow", "crosswalk", "desert", "door",
    "fence", "field", "grass", "moon", "mountain", "person", "plant", "pole", "river", "road", "rock", "sand", "sea",
    "sidewalk", "sign", "sky", "staircase", "streetlight", "sun", "tree", "window",
)  # fmt: skip
