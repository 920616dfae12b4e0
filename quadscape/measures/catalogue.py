"""All measures; a new one is registered here. Importing this loads neither torch nor pydantic."""

from quadscape.measures.batch_hessians.declaration import MEASURE as BATCH_HESSIANS
from quadscape.measures.connection.declaration import MEASURE as CONNECTION
from quadscape.measures.curves.declaration import MEASURE as CURVES
from quadscape.measures.declaration import Measure
from quadscape.measures.density.declaration import MEASURE as DENSITY
from quadscape.measures.descent.declaration import MEASURE as DESCENT
from quadscape.measures.embedding.declaration import MEASURE as EMBEDDING
from quadscape.measures.escape.declaration import MEASURE as ESCAPE
from quadscape.measures.evolution.declaration import MEASURE as EVOLUTION
from quadscape.measures.example_curvature.declaration import MEASURE as EXAMPLE_CURVATURE
from quadscape.measures.final_test.declaration import MEASURE as FINAL_TEST
from quadscape.measures.finite_batch.declaration import MEASURE as FINITE_BATCH
from quadscape.measures.fractal.declaration import MEASURE as FRACTAL
from quadscape.measures.gradients.declaration import MEASURE as GRADIENTS
from quadscape.measures.identified.declaration import MEASURE as IDENTIFIED
from quadscape.measures.independence.declaration import MEASURE as INDEPENDENCE
from quadscape.measures.interpolation.declaration import MEASURE as INTERPOLATION
from quadscape.measures.layers.declaration import MEASURE as LAYERS
from quadscape.measures.leakage.declaration import MEASURE as LEAKAGE
from quadscape.measures.line_forms.declaration import MEASURE as LINE_FORMS
from quadscape.measures.line_search.declaration import MEASURE as LINE_SEARCH
from quadscape.measures.localisation.declaration import MEASURE as LOCALISATION
from quadscape.measures.noise_crossed.declaration import MEASURE as NOISE_CROSSED
from quadscape.measures.noise_curvature.declaration import MEASURE as NOISE_CURVATURE
from quadscape.measures.noise_memory.declaration import MEASURE as NOISE_MEMORY
from quadscape.measures.overlap.declaration import MEASURE as OVERLAP
from quadscape.measures.parts.declaration import MEASURE as PARTS
from quadscape.measures.path.declaration import MEASURE as PATH
from quadscape.measures.posterior.declaration import MEASURE as POSTERIOR
from quadscape.measures.ruggedness.declaration import MEASURE as RUGGEDNESS
from quadscape.measures.ruggedness_compared.declaration import MEASURE as RUGGEDNESS_COMPARED
from quadscape.measures.sharpness.declaration import MEASURE as SHARPNESS
from quadscape.measures.spectrum.declaration import MEASURE as SPECTRUM
from quadscape.measures.stationary.declaration import MEASURE as STATIONARY
from quadscape.measures.surface.declaration import MEASURE as SURFACE
from quadscape.measures.tuning.declaration import MEASURE as TUNING
from quadscape.tables import TableSchema

_ALL = (
    CURVES,
    FINAL_TEST,
    SPECTRUM,
    PARTS,
    DENSITY,
    SHARPNESS,
    LINE_SEARCH,
    LINE_FORMS,
    INDEPENDENCE,
    GRADIENTS,
    FINITE_BATCH,
    NOISE_CURVATURE,
    NOISE_CROSSED,
    BATCH_HESSIANS,
    EXAMPLE_CURVATURE,
    NOISE_MEMORY,
    EVOLUTION,
    POSTERIOR,
    LOCALISATION,
    OVERLAP,
    IDENTIFIED,
    LEAKAGE,
    RUGGEDNESS,
    FRACTAL,
    LAYERS,
    TUNING,
    DESCENT,
    ESCAPE,
    RUGGEDNESS_COMPARED,
    STATIONARY,
    INTERPOLATION,
    PATH,
    EMBEDDING,
    CONNECTION,
    SURFACE,
)

MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}
"""Every measure by its name, in the order of the experiment file."""

OWNERS: dict[str, Measure] = {schema: measure for measure in MEASURES.values() for schema in measure.schemas}
"""The measure of every table, by the table's name."""

SCHEMAS: dict[str, TableSchema] = {name: measure.schemas[name] for name, measure in OWNERS.items()}
"""Every table by its name."""
