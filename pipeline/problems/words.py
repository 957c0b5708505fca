"""Words and characters that problems about spelling are made of."""

EN = """
able acid army atom bake ball band bank barn base bean bear beat bell belt bird boat bolt bone book boot bowl brick
bread bridge broom brown brush cabin cake candle canoe card cart castle cave chain chair chalk cheese clay cliff clock
cloud coat coin comb cook copper coral cork corn couch crab crane cream crown cup dance deer desk dish dock doll door
dove drum duck dust eagle earth east engine fable farm fence fern field fig film fish flag flame flute forest fork fox
frame frog fruit garden gate ghost gift glass glove goat gold grape grass green guide hail hammer hand harbor harp hat
hawk heart hill honey hook horn horse house ice ink iron island ivory jacket jade jam jar jelly juice jungle kettle key
king kite knife knot ladder lake lamb lamp leaf lemon light lily linen lion lock loom magnet mail maple map marble
market mask meal melon metal milk mill mint mirror moon moss moth mouse mud music nail needle nest net night north nut
oak ocean olive onion orange orbit oven owl ox paint palm panda paper path peach pearl pencil pepper piano pine plane
plant plate plum pond pony pot prism pump queen quilt rabbit rain rice ring river road robe robin rock roof root rope
rose ruby sail salt sand scarf sea seed shell shelf ship shirt shoe silk silver sky sled smoke snail snow soap sock
south spoon spring star steam stone storm straw street sugar sun swan table tail tea tent thorn tiger toast torch tower
town train tree tulip turtle vase velvet village vine violin wagon wall water wave wax west whale wheat wheel wind
window wing winter wolf wood wool yard yarn
""".split()  # noqa: SIM905

SYLLABLES = """
ba be bi bo ca co da de di do fa fe fi fo ga ge go ha he hi ho ja jo ka ki ko la le li lo ma me mi mo na ne ni no pa pe
pi po ra re ri ro sa se si so ta te ti to va ve vi wa we wi za ze zo
""".split()  # noqa: SIM905

ZH = (
    "天地人日月山水火木金土石田禾米竹花草树叶风云雨雪春夏秋冬东西南北上下左右大小多少长短高低红黄蓝白黑"
    "牛马羊鸟鱼虫龙虎门窗桌椅书笔纸刀车船衣帽手足口目耳心头牙"
)
