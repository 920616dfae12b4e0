"""The noisy quadratic model: what gradient descent with momentum does in a parabola whose slope is noisy."""
