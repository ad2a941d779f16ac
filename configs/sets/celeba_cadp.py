"""A private copy of CelebA (Liu et al. 2015) given 40 attributes, 128x128 in colour, by CADP; licence: non-commercial
research only.

    python launch.py --config=configs/sets/celeba_cadp.py --workdir=runs/celeba_cadp \
        --config.data.params.path=DIR/img_align_celeba \
        --config.data.params.table=DIR/attributes.csv

The paper's network (Tölle et al., arXiv 2207.14625): six stages of four couplings, half of the channels leaving after
each but the last, clamp 1.2, conditioned on all attributes at once. Classifiers predict one of them. The attributes are
published as they are; --config.release.label_epsilon=E with --config.release.relation=replace-record-and-condition
randomises them, at E/40 each, which leaves little of them. attributes.csv is made of the publisher's two lists by the
line below. All 202,599 images take 40 GB of memory; --config.data.params.limit takes fewer. For an accelerator; not run
to the end so far.
"""

from ml_collections import ConfigDict, config_dict

from configs.sets import base

ATTRIBUTES = (
    *("5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose"),
    *("Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses"),
    *("Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache"),
    *("Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks"),
    *("Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick"),
    *("Wearing_Necklace", "Wearing_Necktie", "Young"),
)

OBTAIN = """
Get img_align_celeba.zip, identity_CelebA.txt and list_attr_celeba.txt from
https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (Liu et al., ICCV 2015; licence: non-commercial research only),
unpack into DIR, make the table there by
awk 'NR == FNR {who[$1] = $2; next} FNR == 2 {printf "path,identity"; for (i = 1; i <= NF; i++) printf ",%s", $i;
print ""} FNR > 2 {printf "%s,%s", $1, who[$1]; for (i = 2; i <= NF; i++) printf ",%d", ($i > 0); print ""}'
identity_CelebA.txt list_attr_celeba.txt > attributes.csv, and give
--config.data.params.path=DIR/img_align_celeba --config.data.params.table=DIR/attributes.csv
"""


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings_cadp.Cadp`."""
    config = base.private(
        {
            "source": "image_folder",
            "params": {
                "path": "data/celeba/img_align_celeba",
                "table": "data/celeba/attributes.csv",
                # A table needs a column of labels: what is predicted is said by evaluation.target.
                "columns": {"label": "Smiling"},
                "attributes": ATTRIBUTES,
                "channels": 3,
                "crop": "square",
                "size": 128,
                "limit": config_dict.placeholder(int),
            },
            "obtain": OBTAIN,
        },
        depths=(4,) * 6,
        dense_depth=0,
        dense_width=128,
    )
    with config.unlocked():
        config.flow.condition = "attributes"
        config.flow.params.splits = (True,) * 5
        config.flow.params.clamp = 1.2
        config.flow.params.conv_net = "paper"
        # Below 1/n of 60,780 private photographs by far.
        config.release.delta = 1e-6
        config.evaluation.target = "Smiling"
        config.evaluation.pixel_block = 16
        config.attack.records = 2_000
    return config.lock()
