import pytest
import torch

from papers_shared.packing import pack_bits, unpack_bits


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 13])
def test_codes_come_back_and_take_no_byte_too_many(bits, count):
    codes = torch.randint(0, 1 << bits, (3, 2, count), generator=torch.Generator().manual_seed(0))
    packed = pack_bits(codes, bits=bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (3, 2, -(-count * bits // 8))
    assert torch.equal(unpack_bits(packed, count=count, bits=bits), codes.to(torch.uint8))


def test_the_first_code_lies_in_the_lowest_bits():
    assert pack_bits(torch.tensor([True, False, False, True])).tolist() == [0b1001]
    assert pack_bits(torch.tensor([5, 3, 7]), bits=3).tolist() == [0b11_011_101, 0b1]


def test_codes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="expected 0 to 3"):
        pack_bits(torch.tensor([4]), bits=2)
    with pytest.raises(ValueError, match="expected 0 to 3"):
        pack_bits(torch.tensor([-1]), bits=2)
    with pytest.raises(ValueError, match="expected 1 to 8"):
        pack_bits(torch.tensor([1]), bits=9)
    with pytest.raises(ValueError, match="booleans or integers"):
        pack_bits(torch.tensor([1.0]))


def test_a_wrong_number_of_bytes_is_refused():
    with pytest.raises(ValueError, match="9 codes of 1 bits take 2"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), count=9)
    with pytest.raises(ValueError, match="uint8"):
        unpack_bits(torch.zeros(1), count=8)
