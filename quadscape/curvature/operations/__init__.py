"""How each operation carries tangents forward and tangents of adjoints backward.

Let y = f(x₁ … x_m) be one node, ḡ_v = ∂ℓ/∂v the adjoint of a value v, and a dot the derivative along a direction. A
operation computes, for S directions at once,

    tangent            ẏ = Σ J_i ẋ_i
    adjoint tangent    ḡ̇_i = J_iᵀ ḡ̇_y + Σ_j ∂²⟨ḡ_y, f⟩/∂x_i∂x_j · ẋ_j

which is forward over reverse differentiation of that node alone (Pearlmutter 1994, node by node). Tangents carry the S
directions in front: shape (S, *shape of the value). What does not depend on the directions is computed once per data
chunk, in `prepare`, and shared by all of them.
"""
