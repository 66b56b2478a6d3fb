"""The grids of ggml's types of 1 to 3 bits: which patterns of levels their codes stand for (ggml-common.h).

Somebody chose them once, so that no formula gives them. All have in common that a pattern is a number whose digits
are the levels' numbers, the first the lowest, and that a grid's codes count its patterns in ascending order; so a
grid is the set of its patterns, and is kept as that: a bit for each possible pattern, deflated, in base 85.
"""

from __future__ import annotations

import base64
import zlib
from functools import cache
from typing import NamedTuple

from compressor.core.lazy import np
from compressor.core.workspace import Array


class _Packed(NamedTuple):
    """The `levels` of a grid, how many of them a pattern has, and the set of its patterns."""

    levels: tuple[int, ...]
    width: int
    patterns: str


_GRIDS = {
    "IQ1_S": _Packed(
        (-1, 0, 1),
        8,
        "EmBQuR7n)QuersvnJD+QRWU9a?IwXoR*{Lbl&a)a5+%_pQ)Mgqh=P*UKo)5?p|t}Y6la8p#%vVQjY4##e_)sa7s71P(lcSeAOpH^"
        "<w{)nQQgk2>cY9_oO{mGM@f^(@mtjTO<Y2&&yvHW*_S9Rw;pY6GN~{g1XAn|$KqXY_V{f`!T2MJQ7)hwanzRtxb3Hdj3O5%NfQg>"
        "PpMTOn_y@!gBucF)6_>I&LMDd&rw8Z{-uYRz`5!jUG*1^?NqW|wOCBExxW^V%M?-+HZw{RxYIxA*C}>1tmIa_<&@Tg!Yzest;R@`"
        "k$fR8U`gRfkfD*D^d-_!QK*O&B$CntTJpagHN(4~S~=({WH5dUTJ?Jhta7y4pKJ!p{JVH5(L2ED+qTL@w(7+`P=+K=WeF4%B39Y!"
        "`~<eMv~vDkyM0w05C4;GTOM^-DCM|y<Z=H`I@KS~u>(Sa1Sev^h_$um8H?16$!f*y`i^EDP1f*=hSeE4IzL=l{?rjm&uiCq=0AM-"
        "yzqOreE-ecub(f^PjB3?Y2McsOP*%MwyJ*3hBp3;4o{8^oDycZ1Hm#)`Du{KnJai#-Pxl!XgCtR1VsctTkm(}m6~O9GWzHJ(vPzn"
        "d6i%C%Y5tC$A`gm?|@WaMdcr4=}d{OMT21Vq+ChL;ZTjEs+Y1y?*B8>y_7c@b!$^c$#Ob{7)a9@d$s6&1ZdRM{<J~mE^5u<R%p~E"
        "L*BUvOc&J<&|5f#u`+`p0<XQ@+m^-!3Ke<7iNks<Q&!vNMY7qe*<gA2P}SoJKJW|cUx<thO*k_diX^@7_=;X<nkbLVrl1zTr)+u^"
        "UB3vYy`;yGe^&lK<;_rOb@UVhK;SYNR<s0FSmPTB+<evQc0<UX!gz>cZgLbR!LsZwtbYR",
    ),
    "IQ2_XXS": _Packed(
        (8, 25, 43),
        8,
        "by7>NgfI-Vva))Lh*ggnb;U7QKFuj#lKx=CSX3&Fo!WuVU;XfC4O$NnfC?%Eu>%UFov^A>{M^fzuL2l?()_&EB=#p&#6VTjX?jA<"
        "Hxep`bs|-~Wmj>myrSc>D20!69;IAH>v*-Rcj}@td64E+nQR@JQH!TLP(0D?6`uy_k-;uM5Z;G>VbT~zS5m`{4BBo^n?uRPBR#66"
        "L?7DiQS8=H7e}evv)s#xmNXkB*|aoy?v(X4`z^yaVw&Sqs4U@XkiU)Wka=Uy+#a#+H|%)EIflD$%o)n7>H+?!Ehpd8eA&N3f7AW}",
    ),
    "IQ2_XS": _Packed(
        (8, 25, 43),
        8,
        "T~SM}gfI-VvWj|&h!x_LQCEmlRIE@>Ir+5E_o^8PP2$*2@BQj`eQrH^FL&jpI4-6tP(|_7qr1RTXet6w1vh)yueWm-We{1Hrx>t6"
        "VTTRyvM!o{mMSQxH+q2s-pUCWH;ySYYz<<S_I<{;0HefD?+FMg>{HnXW~&u$6{K&qWKst(xN1z{iRn40S7A%Zp=(ISX7Z{|Kr_lx"
        "-qM1+&oHAX+Tkfx9aC$}C(JYK4atJ`GR$5Id)e)&dBGS-`-{0j0cGes*nFOZ8|<{onn{f&{UhNF@eaij>K~*1%^Z@OKH|9LG4d%o"
        "RJhA^KdhgSyGo1^2UCfa?k-^A72qQ2Mr=ldg?<GFvRP1hCAlv|Ken=5@+`e|Ow`v)+UFFRdm;Qkl*8|_g2B3dPow(-",
    ),
    "IQ2_S": _Packed(
        (8, 25, 43),
        8,
        "ZBk2a1tAQJvWhqbnib-d5i7(g5G#~Z)(K4esuqprXKZYPnGIXEXU9ugR^~2sNU}`5<FU+a*ENz^!3Br`jgpfPZ*!KY^0fQ_Vj?Xv"
        "g@~A{jREC7O0`(R3Z>Foo>VgVTCbo(Ay}pY0-bGShm`0*_?N|@3~j1ok2bS*s;TijETNGxf6{{#zXUrdQ$Y=KhYeqXXva5&I6iSx"
        "O77KmdAyBz9k!i4vimZtUR0w4rS>|6fRqElMzGKZ(}8?Ia0iS2L@t2ewLS#tnvckUm=N$sFlvb;&)O3X**E2OC~hM=fpmNdN?>%e"
        "<2}hOK~F93h#Aa#^-{YurFG0V;=V5nyWBnU{E4g%r7I5B)R4hlUv(%?KP$`RvSL$0@f-lB{L^8V@7RDuPp^T{$G~Kq-Woc7Cgg;X"
        "%wF`PG_IiX?eJG-VArT#HT-5RdTaUu",
    ),
    "IQ3_XXS": _Packed(
        (4, 12, 20, 28, 36, 44, 52, 62),
        4,
        "O;JG#!!Qg}LI+`|4z_!q;=&$~!5(CK8heG=sn49{G~HB6n^>0QWP6xY;M(kNQlOjI0}H0bCO8x`Qc1WjK=p_4LIK|JlAu}Jk^&|c"
        "#b)9wRD()J#=WaJUcQ2aYM{opwGaLAjJ}K7Vo9AOFZ3q*&Gbs{M&pi_BM8Kr>rdf#=02O5RM-{J<U1?Fv!O6Xlx7C=*-p3|p$h4W"
        ")!hc2CS}CXL7Z&=cUjM+EAnXIIJNE$&=9YkHWJ|=@_P;!>2JbtUH?Lb^xm+C?{YUC_maCT$E-Y(5m$m~zoR>5Aie",
    ),
    "IQ3_S": _Packed(
        (1, 3, 5, 7, 9, 11, 13, 15),
        4,
        "Em1*A13?h19ab1TO&|~Ggbl2}=*S2gPZL@H(+N4u-ZtU`Mo|#o5kDa02}1A{_RQLchOX+as@eVdJ-PRgHkZ@UTX_0<@^KX~I-eeF"
        "s=UlP8X3~!)!o536Tl$wht7z=<(%$u&Ga34<b=JfB8|1sW?V;IlzEG=)V;zov<6&j4~gr{pFg*$Pt|ieHXSLyLD=yO-5a-o#9)oF"
        "QMj>8l{m;t7SYR^jW_}5k@_2U+}i+wEQK_x;vBcKt>N6Qs!{}}nyi6?L5UHN>YOIhK&*$0KnLd)Kd_UE#D?TEpJ1yjcU7(ks$h`~"
        "4iKjhMZ!SF_QaGIgxy|uu#gItYu7=@WTD&xO6A42bge$48UQ;TY$h$$Bw{(cXz3#q95MOk&;|e38jy@w0<pzh=WegB;o{Nc96o;}"
        "nOte|E`MRt2L1p",
    ),
}


@cache
def grid(name: str) -> Array:
    """The patterns of a type's grid, float32 [codes, levels of a pattern]; read-only."""
    packed = _GRIDS[name]
    present = np.frombuffer(zlib.decompress(base64.b85decode(packed.patterns), -15), np.uint8)
    numbers = np.flatnonzero(np.unpackbits(present))
    base = len(packed.levels)
    places = np.cumprod([1, *[base] * (packed.width - 1)])
    digits = numbers[:, None] // places % base
    found: Array = np.array(packed.levels, np.float32)[digits]
    found.flags.writeable = False
    return found


@cache
def signs() -> Array:
    """The signs that 7 bits stand for, float32 [128, 8]: bit k is the sign of weight k, and an even number of the
    eight is negative; read-only."""
    codes = np.arange(128)[:, None] >> np.arange(8) & 1
    codes[:, 7] = codes.sum(axis=1) & 1
    found = (1 - 2 * codes).astype(np.float32)
    found.flags.writeable = False
    return found
