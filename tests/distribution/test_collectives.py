"""The list of collectives of a compiled program."""

from backend_independent import backend_independent
from keras_rgemma.distribution.collectives import Array, collectives, table

TEXT = """
HloModule jit_f, is_scheduled=true

%region_0.1 (x: f32[], y: f32[]) -> f32[] {
  ROOT %add = f32[] add(%x, %y)
}

%while_body.1 (state: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %all-gather.3 = bf16[4,1024]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={1}, metadata={op_name="jit(f)/while/dot_general"}
  %copy = f32[8,16] copy(%all-reduce.9)
}

ENTRY %main.1 (x: f32[8,16]) -> f32[8,16] {
  %all-reduce.1 = (f32[8,16]{1,0}, f32[]) all-reduce(%a, %b), replica_groups=[2,4]<=[8], to_apply=%region_0.1
  %all-reduce.2 = f32[36,20]{1,0} all-reduce(%c), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%region_0.1
  %all-reduce.5 = s8[4,1,20]{2,1,0} all-reduce(%c), replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, to_apply=%region_0.1
  %all-reduce.3 = f32[36]{0} all-reduce(%c), replica_groups=mesh['a'=8] {'a':(1)2}, to_apply=%region_0.1
  %ag = (s8[2,3]{1,0:T(8,128)}, s8[8,3]{1,0:T(8,128)S(1)}) all-gather-start(%d), replica_groups=[1,4]<=[4], dimensions={0}
  %ag-done = s8[8,3]{1,0} all-gather-done(%ag)
  %cp = (f32[5]{0}, f32[5]{0}, u32[], u32[]) collective-permute-start(%e), source_target_pairs={{0,1},{1,0}}
  %cp-done = f32[5]{0} collective-permute-done(%cp)
  %rs = pred[3]{0} reduce-scatter(%g), replica_groups={}, dimensions={0}
}
"""  # noqa: E501


@backend_independent
def test_every_form_of_an_instruction_is_read_once():
    found = collectives(TEXT)
    assert [(x.kind, x.arrays, x.devices) for x in found] == [
        ("all-gather", (Array("bf16", (4, 1024)),), 2),
        ("all-reduce", (Array("f32", (8, 16)), Array("f32", ())), 4),
        ("all-reduce", (Array("f32", (36, 20)),), 4),
        ("all-reduce", (Array("s8", (4, 1, 20)),), 4),
        ("all-reduce", (Array("f32", (36,)),), 2),
        ("all-gather", (Array("s8", (8, 3)),), 4),
        ("collective-permute", (Array("f32", (5,)),), None),
        ("reduce-scatter", (Array("pred", (3,)),), None),
    ]
    assert [x.nbytes for x in found] == [8192, 516, 2880, 80, 144, 24, 20, 3]
    assert [x.computation for x in found[:2]] == ["while_body.1", "main.1"]
    assert found[0].op_name == "jit(f)/while/dot_general"


ON_TPU = """
%all-reduce-scatter.1 (input.1: bf16[16,8]) -> bf16[2,8] {
  %all-reduce.1 = bf16[16,8]{0,1:T(8,128)(2,1)} all-reduce(%input.1), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %dynamic-slice.1 = bf16[2,8]{0,1} dynamic-slice(%all-reduce.1, %i, %zero), dynamic_slice_sizes={2,8}
}

%fused.1 (x: bf16[4,8]) -> (bf16[4,8], bf16[32,8]) {
  %all-gather.1 = bf16[32,8]{1,0} all-gather(%x), channel_id=38, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, frontend_attributes={chain_id="1"}
}

%async_collective_fusion.1 (x: bf16[4,8]) -> (bf16[4,8], bf16[32,8]) {
  %all-gather.2 = bf16[32,8]{1,0} all-gather(%x), channel_id=38, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, frontend_attributes={chain_id="1"}
}
"""  # noqa: E501


@backend_independent
def test_parts_of_one_operation_on_a_tpu_count_once():
    assert [(x.kind, x.arrays, x.devices) for x in collectives(ON_TPU)] == [
        ("reduce-scatter", (Array("bf16", (2, 8)),), 8),
        ("all-gather", (Array("bf16", (32, 8)),), 8),
    ]


@backend_independent
def test_a_table_joins_what_is_equal():
    lines = table([*collectives(TEXT), *collectives(TEXT)[:1]]).splitlines()
    assert len(lines) == 8
    assert "2 x all-gather of bf16[4, 1024] among 2: 16,384 bytes" in lines
