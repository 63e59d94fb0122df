"""Wrong answers of L05. `<exercise>__<misconception>`: the docstring is in the check's message."""


def _normed(x, weight, bias, eps, dims=-1, correction=0):
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, keepdim=True, correction=correction)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def layer_norm__divides_by_c_minus_one(x, weight, bias, eps=1e-5):
    """the variance is divided by C - 1"""
    return _normed(x, weight, bias, eps, correction=1)


def layer_norm__over_the_batch(x, weight, bias, eps=1e-5):
    """over the batch"""
    return _normed(x, weight, bias, eps, dims=0 if x.dim() > 1 else -1)


def layer_norm__over_the_positions(x, weight, bias, eps=1e-5):
    """over the positions"""
    return _normed(x, weight, bias, eps, dims=-2 if x.dim() > 2 else -1)


def layer_norm__whole_tensor(x, weight, bias, eps=1e-5):
    """you normalise"""
    return (x - x.mean()) / (x.var(correction=0) + eps).sqrt() * weight + bias


def layer_norm__eps_outside(x, weight, bias, eps=1e-5):
    """eps stands outside the root"""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (x.std(-1, keepdim=True, correction=0) + eps) * weight + bias


def layer_norm__no_root(x, weight, bias, eps=1e-5):
    """divide by the root"""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (x.var(-1, keepdim=True, correction=0) + eps) * weight + bias


def layer_norm__no_gain(x, weight, bias, eps=1e-5):
    """the gain `weight` is missing"""
    return _normed(x, 1, bias, eps)


def layer_norm__no_bias(x, weight, bias, eps=1e-5):
    """the bias is missing"""
    return _normed(x, weight, 0, eps)


def layer_norm__in_place(x, weight, bias, eps=1e-5):
    """changes its argument `x` in place"""
    x -= x.mean(-1, keepdim=True)
    x /= (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return x * weight + bias


def layer_norm__constants(x, weight, bias, eps=1e-5):
    """the gradient is wrong"""
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean.detach()) / (variance.detach() + eps).sqrt() * weight + bias


def _rms(x, weight, eps, dims=-1):
    return x / (x.pow(2).mean(dims, keepdim=True) + eps).sqrt() * weight


def rms_norm__subtracts_the_mean(x, weight, eps=1e-5):
    """not ["""
    return _rms(x - x.mean(-1, keepdim=True), weight, eps)


def rms_norm__sum_of_squares(x, weight, eps=1e-5):
    """the *mean* of the squares"""
    return x / (x.pow(2).sum(-1, keepdim=True) + eps).sqrt() * weight


def rms_norm__eps_outside(x, weight, eps=1e-5):
    """eps stands outside the root"""
    return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + eps) * weight


def rms_norm__no_eps(x, weight, eps=1e-5):
    """eps is ignored"""
    return _rms(x, weight, 1e-5)


def rms_norm__over_the_positions(x, weight, eps=1e-5):
    """over the positions"""
    return _rms(x, weight, eps, dims=-2 if x.dim() > 2 else -1)


def rms_norm__over_the_batch(x, weight, eps=1e-5):
    """over the batch"""
    return _rms(x, weight, eps, dims=0)


def rms_norm__no_gain(x, weight, eps=1e-5):
    """the gain `weight` is missing"""
    return _rms(x, 1, eps)


def rms_norm__in_float32(x, weight, eps=1e-5):
    """as the input says"""
    return _rms(x.float(), weight.float(), eps)


def pre_norm_block__post_norm(x, attention, mlp, norm1, norm2):
    """that is post-norm"""
    x = norm1(x + attention(x))
    return norm2(x + mlp(x))


def pre_norm_block__no_residual(x, attention, mlp, norm1, norm2):
    """both additions are missing"""
    return mlp(norm2(attention(norm1(x))))


def pre_norm_block__no_second_residual(x, attention, mlp, norm1, norm2):
    """the stream is lost at the MLP"""
    return mlp(norm2(x + attention(norm1(x))))


def pre_norm_block__no_first_residual(x, attention, mlp, norm1, norm2):
    """the stream is lost at the attention"""
    x = attention(norm1(x))
    return x + mlp(norm2(x))


def pre_norm_block__both_read_x(x, attention, mlp, norm1, norm2):
    """the MLP reads the old x"""
    return x + attention(norm1(x)) + mlp(norm2(x))


def pre_norm_block__adds_the_copy(x, attention, mlp, norm1, norm2):
    """the stream itself stays as it is"""
    x = norm1(x)
    x = x + attention(x)
    return x + mlp(norm2(x))


def pre_norm_block__one_norm(x, attention, mlp, norm1, norm2):
    """norm1 is called 2 times"""
    x = x + attention(norm1(x))
    return x + mlp(norm1(x))


def pre_norm_block__adds_in_place(x, attention, mlp, norm1, norm2):
    """changes its argument `x` in place"""
    x += attention(norm1(x))
    x += mlp(norm2(x))
    return x


def pre_norm_block__norms_swapped(x, attention, mlp, norm1, norm2):
    """norm1 belongs to the attention"""
    x = x + attention(norm2(x))
    return x + mlp(norm1(x))
