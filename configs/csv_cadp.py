"""A private copy of your own table, a CSV file with a header, by CADP.

    python launch.py --config=configs/csv_cadp.py --workdir=runs/mine \
        --config.data.params.path=FILE --config.evaluation.target=COLUMN

COLUMN is predicted from the others to see what the copy is good for. The run stops with one line that says what is
missing wherever public facts are needed that must not be read off private rows: the limits of a number
(``columns.ranges``), the categories of a text. Copy this file to state them. ``data.params.person`` names a
column that says whose row it is; it is left out of the table, and nobody is in two shares; ``data.params.delimiter``
what stands between cells, where it is no comma. Everything else is as for the diabetes table; a flow needs some
hundreds of public rows to learn from.
"""

from ml_collections import ConfigDict, config_dict

from configs import diabetes_cadp


def get_config() -> ConfigDict:
    """The settings, see `diffusion_privacy.settings_cadp.CadpTable`."""
    config = diabetes_cadp.get_config()
    with config.unlocked():
        params = {
            "path": "data/table.csv",
            "missing": "error",
            "person": config_dict.placeholder(str),
            "delimiter": config_dict.placeholder(str),
        }
        config.data = {"source": "csv", "params": params}
        config.columns.ranges = {}
        config.columns.declared = ()
        config.columns.apart = ()
        config.evaluation.target = "target"
        config.release.relation = "replace-record-and-condition"
        config.release.label_epsilon = 0.0
    return config.lock()
