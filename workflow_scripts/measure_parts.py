from quadscape.curvature.gauss_newton import GaussNewtonMatrix, RemainderMatrix, eigenvalue_error, eigenvalues
from quadscape.curvature.hessian import HessianMatrix
from quadscape.jobs import start_job, write_tables
from quadscape.probes import parts
from quadscape.probes.ranks import log_indices
from quadscape.probes.setting import Setting

experiment, log = start_job(snakemake)
setting = Setting.load(snakemake.input, experiment)
hessian, gauss_newton = HessianMatrix(snakemake.input.hessian), GaussNewtonMatrix(snakemake.input.gauss_newton)
remainder = RemainderMatrix(hessian, gauss_newton)
errors = {"H": hessian.results["verification"]["error_norm"], "G": gauss_newton.verification["error_norm"]}
errors["R"] = errors["H"] + errors["G"]

values, zeros = {"H": setting.basis.eigenvalues}, {"H": setting.basis.zero_threshold}
for part, matrix in (("G", gauss_newton), ("R", remainder)):
    values[part] = eigenvalues(matrix.dense(), setting.device, int(snakemake.threads), part)
    zeros[part] = eigenvalue_error(values[part], hessian.dtype, errors[part])
    log(f"The eigenvalues of {part} are from {values[part][-1]:.4g} to {values[part][0]:.4g}.")
indices = log_indices(values["H"], parts.ROWS_PER_SIGN)
vectors = setting.basis.select(indices)
along = [parts.ritz_values(matrix, vectors) for matrix in (gauss_newton, remainder)]
write_tables(
    snakemake,
    {
        "parts_spectrum": parts.spectra(values, zeros, setting.attributes),
        "parts_ritz": parts.along_eigenvectors(values["H"], indices, *along, errors["R"], setting.attributes),
    },
)
