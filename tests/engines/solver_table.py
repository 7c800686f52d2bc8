"""The solvers that states spread over devices and processes are solved by."""

import fixedpoint as fp

SOLVERS = {
    "Picard": fp.Picard(),
    "Anderson": fp.Anderson(memory=4),
    "Broyden": fp.Broyden(memory=5),
    "NewtonKrylov": fp.NewtonKrylov(),
    "SQUAREM": fp.SQUAREM(),
}
